"""The next step launched before this one's tokens are known: the same events, nothing lost."""

import random

import pytest
import torch

from common.errors import XpydError
from common.request import TokenEvent
from tests.common.engine.standin_model import (
    StandInModel,
    greedy_answer,
    make_engine,
    make_request,
    must,
    run,
    tokens_of,
)

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


class Watched(StandInModel):
    """Counts forward passes; `on_forward` is called before each."""

    def __init__(self):
        super().__init__()
        self.num_passes = 0
        self.on_forward = None

    def forward(self, inputs, cache):
        self.num_passes += 1
        if self.on_forward is not None:
            self.on_forward(inputs)
        return super().forward(inputs, cache)


def overlapped(**options):
    model = Watched()
    return make_engine(model=model, is_overlapped=True, **options), model


def at_rest(engine):
    counts = engine.block_counts()
    assert not engine.has_work()
    assert counts["used"] == counts["held"] == counts["reserved"] == 0
    return True


def test_a_step_is_launched_before_the_tokens_of_the_last_are_told():
    engine, model = overlapped()
    engine.add(make_request("r", PROMPT, 5))
    passes = []
    events = []
    while engine.has_work():
        events += engine.step().events
        passes.append(model.num_passes)
    assert tokens_of(events) == greedy_answer(PROMPT, 5)
    assert passes == [2, 3, 4, 5, 5], "always one ahead, and none after what max_tokens ends"
    assert at_rest(engine)


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_token_that_ends_the_answer_is_the_last_one(stop_after):
    """The pass behind it was in vain: its block is nobody's until that is over."""
    answer = greedy_answer(PROMPT, 8)
    end = answer.index(answer[stop_after - 1]) + 1
    engine, model = overlapped(eos=(answer[stop_after - 1],), num_blocks=16)
    engine.add(make_request("r", PROMPT, 8))
    events = []
    for _ in range(end):
        events += engine.step().events
    assert tokens_of(events) == answer[:end]
    assert model.num_passes == end + 1
    assert engine.has_work(), "the pass ahead is not over"
    assert engine.block_counts()["held"] == 1
    taken = must(engine.reserve(15))
    assert engine.reserve(1) is None
    assert not engine.step().events
    engine.free(taken)
    assert at_rest(engine)


def test_an_abort_meets_a_step_in_flight():
    engine, _ = overlapped()
    for name in ("a", "b"):
        engine.add(make_request(name, [*PROMPT, ord(name) - 90], 6))
    told = [event for _ in range(3) for event in engine.step().events]
    engine.abort("a")
    assert engine.block_counts()["held"] == 1
    told += run(engine)["b"]
    mine = [event for event in told if event.request_id == "b"]
    assert tokens_of(mine) == greedy_answer([*PROMPT, 8], 6)
    assert at_rest(engine)


def test_who_arrives_is_in_the_next_step_but_one():
    engine, _ = overlapped()
    engine.add(make_request("old", PROMPT, 9))
    told = [event for _ in range(3) for event in engine.step().events]
    engine.add(make_request("new", [7, 7, 7], 3))
    told += engine.step().events + engine.step().events
    assert "new" in {event.request_id for event in told}
    for name, events in run(engine).items():
        told += [event for event in events if event.request_id == name]
    for name, prompt, count in (("old", PROMPT, 9), ("new", [7, 7, 7], 3)):
        mine = [event for event in told if event.request_id == name]
        assert tokens_of(mine) == greedy_answer(prompt, count)
    assert at_rest(engine)


def test_what_the_host_must_decide_is_waited_for():
    """Penalties and logprobs need the tokens on the host: no step is ahead of them."""
    engine, model = overlapped(max_num_batched_tokens=32)
    engine.add(make_request("r", PROMPT, 4, logprobs=2))
    engine.add(make_request("p", PROMPT, 4, repetition_penalty=1.3))
    for step in range(4):
        engine.step()
        assert model.num_passes == step + 1
    assert at_rest(engine)


def test_a_pass_that_fails_ahead_ends_those_in_it_and_frees_all():
    engine, model = overlapped()
    engine.add(make_request("r", PROMPT, 6))
    engine.step()

    def fail(inputs):
        raise RuntimeError("device lost")

    model.on_forward = fail
    with pytest.raises(RuntimeError):
        engine.step()
    result = engine.fail_running(XpydError("broken"))
    assert [name for name, _ in result.failed] == ["r"]
    assert at_rest(engine)


def test_a_context_without_a_token_fails_alone():
    engine, model = overlapped()
    model.poison = {greedy_answer(PROMPT, 2)[1]}
    engine.add(make_request("bad", PROMPT, 6))
    engine.add(make_request("good", [8, 8], 4))
    events, failed = [], []
    while engine.has_work():
        result = engine.step()
        events += result.events
        failed += result.failed
    assert [name for name, _ in failed] == ["bad"]
    good = [event for event in events if event.request_id == "good"]
    assert tokens_of(good) == greedy_answer([8, 8], 4)
    assert at_rest(engine)


@pytest.mark.parametrize("seed", range(4))
def test_overlapped_or_not_the_events_are_the_same(seed):
    rng = random.Random(seed)
    requests = [
        make_request(
            f"r{i}",
            [rng.randrange(97) for _ in range(rng.randint(1, 30))],
            rng.randint(1, 12),
            temperature=rng.choice([0.0, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            seed=i,
        )
        for i in range(20)
    ]
    arrivals = [rng.randint(0, 30) for _ in requests]
    found = []
    for is_overlapped in (False, True):
        engine = make_engine(num_blocks=20, eos=(4, 9), is_overlapped=is_overlapped)
        events: dict[str, list[TokenEvent]] = {}
        for step in range(400):
            for request, arrival in zip(requests, arrivals, strict=True):
                if arrival == step:
                    engine.add(request)
            for event in engine.step().events:
                events.setdefault(event.request_id, []).append(event)
        assert at_rest(engine)
        found.append(
            {name: (tokens_of(mine), mine[-1].finish_reason) for name, mine in events.items()}
        )
    assert found[0] == found[1]
    assert len(found[0]) == len(requests)


def test_tokens_of_some_rows_stay_in_their_order():
    from common.engine.flight import Flight
    from common.engine.sampler import DeviceSamples
    from common.engine.scheduler import Plan
    from common.engine.sequence import Sequence

    rows = [Sequence(make_request(str(i), [1]), i, frozenset()) for i in range(4)]
    chosen = DeviceSamples(torch.tensor([10, 11, 12, 13]), torch.ones(4, dtype=torch.bool))
    flight = Flight(Plan([], [], []), rows, 4, chosen)
    assert flight.tokens_of([rows[3], rows[1]]).tolist() == [13, 11]
    assert flight.tokens_of(rows).tolist() == [10, 11, 12, 13]
