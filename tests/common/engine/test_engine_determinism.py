"""The same seeded request gives the same tokens in any company, after any fate, on any engine."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.request import TokenEvent
from tests.common.engine.standin_model import make_engine, make_request, must, run, tokens_of

OPTIONS = [
    {},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0.8, "top_p": 0.9, "seed": -3},
    {"temperature": 1.2, "top_k": 30, "min_p": 0.02, "seed": 1 << 40},
    {"temperature": 1.0, "repetition_penalty": 1.4, "frequency_penalty": 0.6, "seed": 2},
    {"temperature": 1.0, "bad_words": ((5, 6), (7,)), "min_tokens": 6, "seed": 8},
]


def prompt_of(rng, longest=40):
    return [rng.randrange(97) for _ in range(rng.randint(1, longest))]


def alone(request):
    engine = make_engine(num_blocks=32, enable_prefix_caching=False)
    engine.add(request)
    return tokens_of(run(engine)[request.request_id])


def a_request(name, rng):
    return make_request(name, prompt_of(rng), rng.randint(6, 16), **rng.choice(OPTIONS))


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_in_a_storm_on_a_tiny_pool(options, is_overlapped):
    rng = random.Random(1)
    request = make_request("me", prompt_of(rng), 20, priority=1, **options)
    expected = alone(request)
    engine = make_engine(num_blocks=16, max_num_batched_tokens=11, is_overlapped=is_overlapped)
    for i in range(3):
        engine.add(a_request(f"before-{i}", rng))
    engine.add(request)
    for i in range(12):
        engine.add(a_request(f"after-{i}", rng))
    assert tokens_of(run(engine)["me"]) == expected
    assert engine.ledger()["preemptions"] > 0


@pytest.mark.parametrize("options", OPTIONS)
def test_resumed_elsewhere_at_each_token(options):
    """A decode instance died after n tokens: another one recomputes and goes on."""
    request = make_request("me", prompt_of(random.Random(2)), 9, **options)
    expected = alone(request)
    for emitted in range(1, len(expected)):
        resumed = msgspec.structs.replace(request, output_token_ids=tuple(expected[:emitted]))
        assert alone(resumed) == expected[emitted:]


@pytest.mark.parametrize("options", OPTIONS)
def test_handed_over_at_each_token(options):
    """The same with the blocks of another engine: nothing is recomputed."""
    request = make_request("me", prompt_of(random.Random(3)), 7, **options)
    expected = alone(request)
    source, target = make_engine(), make_engine()
    for emitted in range(len(expected) - 1):
        part = msgspec.structs.replace(request, output_token_ids=tuple(expected[:emitted]))
        source.add(part, offer=True)
        blocks, first = [], []
        while source.has_work():
            result = source.step()
            blocks += [block for filled in result.filled for block in filled.block_ids]
            first += [token for event in result.events for token in event.token_ids]
        assert first == [expected[emitted]]
        mine = must(target.reserve(len(blocks)))
        target.cache.tensor[mine] = source.cache.tensor[blocks]
        source.free(blocks)
        target.adopt(
            msgspec.structs.replace(part, output_token_ids=(*part.output_token_ids, *first)), mine
        )
        assert tokens_of(run(target)["me"]) == expected[emitted + 1 :]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_storms_end_each_request_once_with_its_own_tokens(seed):
    """Adds, aborts, offers, loads: every request that is not aborted ends in exactly one event."""
    rng = random.Random(seed)
    engine = make_engine(
        num_blocks=rng.choice([16, 18, 24]),
        max_num_batched_tokens=rng.choice([8, 13, 64]),
        enable_prefix_caching=rng.random() < 0.7,
        is_overlapped=rng.random() < 0.5,
    )
    running: dict[str, object] = {}
    events: dict[str, list[TokenEvent]] = {}
    ended: list[str] = []
    held: list[list[int]] = []

    def step():
        result = engine.step()
        held.extend(list(filled.block_ids) for filled in result.filled)
        assert not result.failed
        for event in result.events:
            assert event.request_id in running, "news of a request that is over"
            events.setdefault(event.request_id, []).append(event)
            if event.finish_reason is not None:
                ended.append(event.request_id)
                running.pop(event.request_id)

    done = []
    for i in range(30):
        action, request = rng.random(), a_request(f"r{i}", rng)
        if action < 0.5:
            engine.add(request)
            running[request.request_id] = request
            done.append(request)
        elif action < 0.6:
            engine.add(request, offer=True)
            running[request.request_id] = None
        elif action < 0.7 and running:
            name = rng.choice(list(running))
            engine.abort(name)
            running.pop(name)
            done = [one for one in done if one.request_id != name]
        elif action < 0.8 and held:
            engine.free(held.pop(rng.randrange(len(held))))
        step()
    while engine.has_work():
        before = engine.load()
        step()
        if engine.load() == before and held:
            engine.free(held.pop())  # a lease runs out
    for blocks in held:
        engine.free(blocks)
    for request in done:
        assert tokens_of(events[request.request_id]) == alone(request)
    assert len(ended) == len(set(ended))
    ledger = engine.ledger()
    assert ledger["free"] + ledger["cached"] == ledger["total"]
    engine._pool.audit()
