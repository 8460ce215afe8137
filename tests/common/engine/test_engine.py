"""The engine over a stand-in model whose answers depend on every token that the cache holds."""

from __future__ import annotations

import random

import msgspec
import pytest
import torch

from common.engine.engine import Engine
from common.engine.interface import EngineSettings
from common.engine.kv_cache import KVCache, KVLayout
from common.errors import BadRequest, ContextLengthExceeded, Overloaded, XpydError
from common.request import FinishReason, TokenEvent
from tests.common.engine.standin_model import (
    StandInModel,
    context_logits,
    greedy_answer,
    make_engine,
    make_request,
    must,
    run,
    tokens_of,
)

BLOCK = 4


def prompt_of(length, seed=0):
    rng = random.Random(seed * 1000 + length)
    return [rng.randrange(97) for _ in range(length)]


def at_rest(engine):
    """No work, no owners, and the pool's books agree with themselves."""
    ledger = engine.ledger()
    assert not engine.has_work()
    assert ledger["sequences"] == []
    assert ledger["blocks"] == []
    assert ledger["free"] + ledger["cached"] == ledger["total"]
    engine._pool.audit()
    return True


# --- right answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 17, 62, 63])
def test_greedy_over_block_and_chunk_borders(length):
    engine = make_engine()
    max_tokens = min(9, 64 - length)
    prompt = prompt_of(length)
    for name in ("cold", "prefix-hit"):
        engine.add(make_request(name, prompt, max_tokens))
        events = run(engine)[name]
        assert tokens_of(events) == greedy_answer(prompt, max_tokens)
        assert events[-1].finish_reason is FinishReason.LENGTH
        expected_hit = (length - 1) // BLOCK * BLOCK if name == "prefix-hit" else 0
        assert events[0].num_cached_tokens == expected_hit
    assert at_rest(engine)


@pytest.mark.parametrize("num_blocks", [16, 20, 128])
@pytest.mark.parametrize("caching", [True, False])
def test_a_crowd_on_pools_of_all_sizes(num_blocks, caching):
    engine = make_engine(num_blocks=num_blocks, enable_prefix_caching=caching)
    prompts = {f"r{i}": prompt_of(1 + 7 * i % 40, seed=i // 3) for i in range(24)}
    for name, prompt in prompts.items():
        engine.add(make_request(name, prompt, 20))
    events = run(engine)
    for name, prompt in prompts.items():
        assert tokens_of(events[name]) == greedy_answer(prompt, 20), name
    assert (engine.ledger()["preemptions"] > 0) is (num_blocks < 128)
    assert at_rest(engine)


def test_a_preempted_sequence_leaves_its_seat_to_others():
    engine = make_engine(num_blocks=18, max_num_seqs=2, enable_prefix_caching=False)
    prompts = {name: prompt_of(length) for name, length in (("a", 30), ("b", 29), ("c", 2))}
    for name in ("a", "b"):
        engine.add(make_request(name, prompts[name], 20))
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work():
        if engine.ledger()["preemptions"] == 1 and "c" not in events:
            engine.add(make_request("c", prompts["c"], 2, priority=-1))
            events["c"] = []
        for event in engine.step().events:
            events.setdefault(event.request_id, []).append(event)
    assert tokens_of(events["c"]) == greedy_answer(prompts["c"], 2)
    assert tokens_of(events["b"]) == greedy_answer(prompts["b"], 20)
    assert at_rest(engine)


def test_no_sharing_across_salts():
    model = StandInModel()
    engine = make_engine(model=model)
    for salt, expected in (("a", 20), ("b", 20), ("a", 4)):
        before = model.num_tokens
        engine.add(make_request("r", prompt_of(20), 1, salt=salt))
        run(engine)
        assert model.num_tokens - before == expected


def test_resume_continues_at_the_next_index():
    prompt = prompt_of(10)
    answer = greedy_answer(prompt, 12)
    engine = make_engine()
    engine.add(make_request("r", prompt, 12, outputs=tuple(answer[:7])))
    events = run(engine)["r"]
    assert events[0].index == 7
    assert tokens_of(events) == answer[7:]


@pytest.mark.parametrize("outputs", [(1, 2, 3), (1, 50)])
def test_what_had_ended_already_gets_its_last_event(outputs):
    engine = make_engine(eos=(50,))
    engine.add(make_request("r", [1, 2], 3, outputs=outputs))
    (event,) = run(engine)["r"]
    assert (event.index, event.token_ids) == (len(outputs), ())
    assert event.finish_reason is (FinishReason.STOP if 50 in outputs else FinishReason.LENGTH)


# --- ends ----------------------------------------------------------------------------------------


def first_with_distinct(num_tokens):
    """A prompt whose greedy answer repeats no token."""
    return next(
        prompt
        for prompt in (prompt_of(5, seed) for seed in range(100))
        if len(set(greedy_answer(prompt, num_tokens))) == num_tokens
    )


def test_eos_stop_ids_and_ignore_eos():
    prompt = first_with_distinct(8)
    answer = greedy_answer(prompt, 8)
    engine = make_engine(eos=(answer[4],))
    engine.add(make_request("eos", prompt))
    engine.add(make_request("stop", prompt, stop_token_ids=(answer[2],)))
    engine.add(make_request("on", prompt, ignore_eos=True))
    engine.add(make_request("both", prompt, ignore_eos=True, stop_token_ids=(answer[4],)))
    events = run(engine)
    assert tokens_of(events["eos"]) == answer[:5]
    assert (events["eos"][-1].finish_reason, events["eos"][-1].stop_token_id) == ("stop", None)
    assert tokens_of(events["stop"]) == answer[:3]
    assert events["stop"][-1].stop_token_id == answer[2]
    assert tokens_of(events["on"]) == answer
    assert events["on"][-1].finish_reason is FinishReason.LENGTH
    assert tokens_of(events["both"]) == answer[:5]
    assert events["both"][-1].stop_token_id == answer[4]


def test_min_tokens_puts_the_end_off():
    prompt = first_with_distinct(8)
    answer = greedy_answer(prompt, 8)
    engine = make_engine(eos=(answer[1],))
    engine.add(make_request("r", prompt, 8, min_tokens=4))
    tokens = tokens_of(run(engine)["r"])
    assert len(tokens) > 4
    assert answer[1] not in tokens[:4]


def test_max_tokens_zero_is_for_prompt_logprobs():
    engine = make_engine()
    engine.add(make_request("r", prompt_of(6), 0, prompt_logprobs=1))
    (event,) = run(engine)["r"]
    assert event.token_ids == ()
    assert event.finish_reason is FinishReason.LENGTH
    assert len(event.prompt_logprobs) == 6


def test_prompt_logprobs_are_of_each_next_token():
    prompt = prompt_of(40)
    engine = make_engine(num_blocks=16, max_num_batched_tokens=9)
    for name in ("busy-1", "busy-2"):
        engine.add(make_request(name, prompt_of(12, seed=4), 30))
    engine.add(make_request("r", prompt, 2, prompt_logprobs=3))
    events = run(engine)["r"]
    got = events[0].prompt_logprobs
    assert got[0] is None
    assert events[1].prompt_logprobs == ()
    for position in range(1, len(prompt)):
        expected = torch.from_numpy(context_logits(prompt[:position], 97)).double().log_softmax(-1)
        entry = must(got[position])
        assert entry.logprob == pytest.approx(expected[prompt[position]].item(), abs=1e-5)
        assert [token for token, _ in entry.top] == expected.topk(3).indices.tolist()
    assert tokens_of(events) == greedy_answer(prompt, 2)


def test_the_first_event_carries_timings():
    now = [100.0]
    model = StandInModel()
    cache = KVCache(KVLayout.of(model.spec, BLOCK), 16, torch.device("cpu"))
    limits = EngineSettings(64, max_num_seqs=4, max_num_batched_tokens=8)
    engine = Engine(model, cache, limits, (), "f", clock=lambda: now[0])
    engine.add(make_request("r", prompt_of(16), 3))
    now[0] = 101.5
    assert engine.step().events == []
    now[0] = 104.0
    (first,) = engine.step().events
    assert first.timings == {"prefill_queue": 1.5, "prefill": 2.5}
    (second,) = engine.step().events
    assert second.timings == {}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "max_tokens", "param"),
    [(64, 1, "prompt"), (80, 1, "prompt"), (40, 25, "max_tokens")],
)
def test_longer_than_the_context_is_a_clear_400(length, max_tokens, param):
    engine = make_engine()
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 64") as caught:
        engine.add(make_request("r", prompt_of(length), max_tokens))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert at_rest(engine)


@pytest.mark.parametrize(
    ("param", "prompt", "sampling"),
    [
        ("prompt", [], {}),
        ("prompt", [97], {}),
        ("prompt", [-1], {}),
        ("temperature", [1], {"temperature": float("nan")}),
        ("temperature", [1], {"temperature": -1.0}),
        ("presence_penalty", [1], {"presence_penalty": float("inf")}),
        ("repetition_penalty", [1], {"repetition_penalty": 0.0}),
        ("top_p", [1], {"top_p": 0.0}),
        ("top_k", [1], {"top_k": -1}),
        ("min_p", [1], {"min_p": 1.5}),
        ("min_tokens", [1], {"min_tokens": 9}),
        ("logit_bias", [1], {"logit_bias": ((97, 1.0),)}),
        ("logit_bias", [1], {"logit_bias": ((9, float("nan")),)}),
        ("bad_words", [1], {"bad_words": ((),)}),
        ("bad_words", [1], {"bad_words": ((1, 200),)}),
        ("allowed_token_ids", [1], {"allowed_token_ids": (1, -2)}),
        ("stop_token_ids", [1], {"stop_token_ids": (1 << 40,)}),
        ("logprobs", [1], {"logprobs": -1}),
        ("seed", [1], {"seed": 1 << 63}),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_field(param, prompt, sampling):
    engine = make_engine()
    with pytest.raises(BadRequest) as caught:
        engine.add(make_request("r", prompt, 8, **sampling))
    assert caught.value.param == param
    assert at_rest(engine)


def test_more_logprobs_than_tokens_in_the_vocabulary():
    engine = make_engine()
    engine.add(make_request("r", [1], 1, logprobs=10_000))
    (event,) = run(engine)["r"]
    assert len(event.logprobs[0].top) == 97


def test_a_full_queue_and_a_known_id_are_refused():
    engine = make_engine(max_num_waiting=2)
    engine.add(make_request("a", [1]))
    with pytest.raises(BadRequest):
        engine.add(make_request("a", [1]))
    engine.add(make_request("b", [1]))
    with pytest.raises(Overloaded):
        engine.add(make_request("c", [1]))
    run(engine)
    engine.add(make_request("c", [1]))


# --- faults and aborts ---------------------------------------------------------------------------


def test_no_number_ends_only_its_own_request():
    model = StandInModel()
    model.poison = {96}
    engine = make_engine(model=model)
    prompt = [1, 2, 3, 4, 5]
    engine.add(make_request("good", prompt))
    engine.add(make_request("bad", [5, 96]))
    engine.add(make_request("bad-too", [96] * 9), offer=True)
    events, failed = [], []
    while engine.has_work():
        result = engine.step()
        events += result.events
        failed += result.failed
        for filled in result.filled:
            assert not filled.is_last
            engine.free(list(filled.block_ids))
    assert {name for name, _ in failed} == {"bad", "bad-too"}
    assert all(isinstance(error, XpydError) for _, error in failed)
    assert {event.request_id for event in events} == {"good"}
    assert tokens_of(events) == greedy_answer(prompt, 8)
    assert at_rest(engine)


@pytest.mark.parametrize("num_steps", range(9))
def test_an_abort_at_any_time_leaves_the_pool_at_rest(num_steps):
    engine = make_engine(max_num_batched_tokens=8)
    engine.add(make_request("a", prompt_of(30), 4))
    engine.add(make_request("b", prompt_of(9), 4), offer=True)
    held: list[int] = []
    for _ in range(num_steps):
        for filled in engine.step().filled:
            held += filled.block_ids
    for name in ("a", "b", "a", "unknown"):
        engine.abort(name)
    assert not engine.has_work()
    assert engine.ledger()["used"] == 0
    assert engine.ledger()["held"] == len(held)
    engine.free(held)
    assert at_rest(engine)


def test_an_abort_takes_back_an_event_not_yet_told():
    engine = make_engine()
    engine.add(make_request("r", [1], 1, outputs=(5,)))
    engine.abort("r")
    assert at_rest(engine)


def test_a_step_that_raises_ends_those_in_it_and_not_those_who_wait():
    class Broken(StandInModel):
        is_broken = True

        def forward(self, inputs, cache):
            if self.is_broken:
                raise RuntimeError("a bug")
            return super().forward(inputs, cache)

    model = Broken()
    engine = make_engine(model=model, max_num_seqs=2)
    for name in ("a", "b", "c"):
        engine.add(make_request(name, [1, 2], 3))
    with pytest.raises(RuntimeError):
        engine.step()
    result = engine.fail_running(XpydError("internal"))
    assert [name for name, _ in result.failed] == ["a", "b"]
    model.is_broken = False
    assert tokens_of(run(engine)["c"]) == greedy_answer([1, 2], 3)
    assert at_rest(engine)


# --- offer, hold, reserve, adopt -----------------------------------------------------------------


def offered(engine, request):
    """Run one offered request to its end: (filled, event)."""
    engine.add(request, offer=True)
    filled, events = [], []
    while engine.has_work():
        result = engine.step()
        filled += [one for one in result.filled if one.request_id == request.request_id]
        events += result.events
    return filled, events[0]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 12, 17, 40])
def test_an_offered_prompt_reports_each_block_once_as_it_fills(length):
    engine = make_engine(max_num_batched_tokens=8)
    prompt = prompt_of(length)
    filled, event = offered(engine, make_request("r", prompt, 5))
    assert event.token_ids == tuple(greedy_answer(prompt, 1))
    assert event.finish_reason is None
    assert [one.is_last for one in filled] == [False] * (len(filled) - 1) + [True]
    blocks = [block for one in filled for block in one.block_ids]
    assert len(blocks) == len(set(blocks)) == -(-length // BLOCK)
    for one in filled:
        assert len(one.block_ids) == len(one.epochs) == len(one.hashes)
        assert one.epochs == engine.epochs(list(one.block_ids))
        assert one.num_tokens == min(length, (one.first + len(one.block_ids)) * BLOCK)
    assert [one.first for one in filled] == [
        sum(len(earlier.block_ids) for earlier in filled[:i]) for i in range(len(filled))
    ]
    if length > 8:
        assert len(filled) > 1, "offered while prefill is still running"
    assert engine.ledger()["held"] == len(blocks)
    engine.free(blocks)
    assert at_rest(engine)


def test_held_blocks_survive_pressure_and_keep_their_epoch():
    engine = make_engine(num_blocks=16)
    (*_, last), _ = offered(engine, make_request("r", prompt_of(10), 5))
    held = [b for b in range(16) if engine._pool.state(b).name == "HELD"]
    before = engine.cache.tensor[held].clone()
    epochs = engine.epochs(held)
    for i in range(6):
        engine.add(make_request(f"s{i}", prompt_of(30, seed=i), 10))
    run(engine)
    assert torch.equal(engine.cache.tensor[held], before)
    assert engine.epochs(held) == epochs
    engine.free(held)
    engine.add(make_request("big", prompt_of(50, seed=99), 14))
    run(engine)
    assert engine.epochs(held) != epochs
    assert last.is_last


def hand_over(source, target, request):
    """Prefill on `source`, copy the blocks by hand, adopt on `target`: (first event, hits)."""
    filled, event = offered(source, request)
    theirs = [block for one in filled for block in one.block_ids]
    tokens = request.prompt_token_ids + request.output_token_ids
    matched = target.match_prefix(tokens, request.cache_salt)
    reserved = target.reserve(len(theirs) - len(matched))
    assert reserved is not None
    target.cache.tensor[reserved] = source.cache.tensor[theirs[len(matched) :]]
    resumed = msgspec.structs.replace(
        request, output_token_ids=(*request.output_token_ids, *event.token_ids)
    )
    target.adopt(resumed, matched + reserved)
    source.free(theirs)
    return event, len(matched)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 33, 56])
def test_adopted_blocks_continue_the_answer(length):
    model = StandInModel()
    source, target = make_engine(num_blocks=40), make_engine(num_blocks=20, model=model)
    prompt = prompt_of(length)
    for turn, name in enumerate(("first", "again")):
        before = model.num_tokens
        event, num_matched = hand_over(source, target, make_request(name, prompt, 8))
        events = [event, *run(target)[name]]
        assert tokens_of(events) == greedy_answer(prompt, 8)
        assert model.num_tokens - before == 7, "the decode side recomputes nothing"
        assert num_matched == (length // BLOCK if turn else 0)
    assert at_rest(source)
    assert at_rest(target)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 16, 33, 56])
def test_adopting_a_prompt_alone_samples_the_first_token_too(length):
    """As for a router that keeps nobody's first token: whoever shares a block is not disturbed."""
    source, target = make_engine(num_blocks=40), make_engine(num_blocks=40)
    prompt = prompt_of(length)
    for turn, name in enumerate(("first", "again")):
        request = make_request(name, prompt, 8)
        filled, _ = offered(source, request)
        theirs = [block for one in filled for block in one.block_ids]
        matched = target.match_prefix(tuple(prompt[:-1]))
        assert len(matched) == ((length - 1) // BLOCK if turn else 0)
        reserved = must(target.reserve(len(theirs) - len(matched)))
        target.cache.tensor[reserved] = source.cache.tensor[theirs[len(matched) :]]
        target.adopt(request, matched + reserved)
        source.free(theirs)
        assert tokens_of(run(target)[name]) == greedy_answer(prompt, 8)
    assert at_rest(source)
    assert at_rest(target)


def test_adopting_what_the_first_token_ended():
    source, target = make_engine(), make_engine()
    event, _ = hand_over(source, target, make_request("r", prompt_of(9), 1))
    assert event.finish_reason is FinishReason.LENGTH
    (last,) = run(target)["r"]
    assert (last.index, last.token_ids, last.finish_reason) == (1, (), FinishReason.LENGTH)
    assert at_rest(target)


def test_a_refused_adoption_leaves_the_blocks_with_the_caller():
    engine = make_engine()
    blocks = must(engine.reserve(2))
    for request in (
        make_request("r", prompt_of(9), 4, outputs=(1,)),
        make_request("r", prompt_of(13), 4),
    ):
        with pytest.raises(BadRequest):
            engine.adopt(request, blocks)
    assert engine.ledger()["reserved"] == 2
    engine.free(blocks)
    assert at_rest(engine)


def test_a_match_is_held_until_freed():
    engine = make_engine(num_blocks=16)
    prompt = tuple(prompt_of(12))
    engine.add(make_request("r", list(prompt), 1))
    run(engine)
    matched = engine.match_prefix(prompt)
    assert len(matched) == 3
    assert engine.match_prefix(prompt, "other salt") == []
    assert engine.reserve(14) is None
    rest = must(engine.reserve(13))
    assert not set(rest) & set(matched)
    engine.free(matched + rest)
    assert at_rest(engine)


def test_load_counts_what_is_here():
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=8)
    engine.add(make_request("a", prompt_of(20), 2))
    engine.add(make_request("b", prompt_of(5), 2))
    engine.step()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.num_waiting_tokens) == (1, 1, 12 + 5)
    assert (load.free_blocks, load.total_blocks) == (64 - 5, 64)
