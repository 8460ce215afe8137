"""After a failed KV load: who is asked instead, and what the client sees of it (nothing)."""

from __future__ import annotations

import asyncio

from benchmarks.standin_instance import Standin
from common.wire import RunDecode
from proxy.estimates import Estimates
from proxy.other_source import other_source
from proxy.policy import Pair, RequestFacts, Snapshot
from tests.proxy.fleet_of_standins import answer, collect, make_request, running_fleet, until
from tests.proxy.test_policy import view


def choose(cached, *, prefill_s=None, hand_over_s=0.0, d=None, **changes):
    """A prompt of 1000 tokens that `d0` could not load from `p0`."""
    views = [view(f"p{i}", "prefill", **changes.get(f"p{i}", {})) for i in range(3)]
    views.append(view("d0", "decode", **(d or {})))
    estimates = Estimates()
    if prefill_s is not None:
        for num_tokens in (10, 1000):
            for _ in range(4):
                estimates.prefilled("d0", num_tokens, prefill_s * num_tokens, 0.0)
                estimates.handed_over("p0", "d0", num_tokens, hand_over_s, 0.0)
    facts = RequestFacts(1000, avoid=frozenset({"p0"}), cached_tokens=cached)
    return other_source(Snapshot("m", tuple(views)), facts, "d0", estimates, 1.0)


def test_who_has_more_of_the_prompt_is_asked():
    assert choose({"p1": 900, "p2": 960}) == Pair("p2", "d0")
    assert choose({"p1": 960, "p2": 900}) == Pair("p1", "d0")


def test_the_one_that_has_failed_is_not_asked_again():
    assert choose({"p0": 992}) is None
    assert choose({"p0": 992, "p1": 600}) == Pair("p1", "d0")


def test_nobody_has_enough_of_it():
    assert choose({}) is None
    assert choose({"p1": 400}) is None
    assert choose({"p1": 992, "d0": 995}) is None


def test_who_does_not_fit_or_is_silent_is_not_asked():
    cached = {"p1": 992, "p2": 900}
    assert choose(cached, p1={"is_suspect": True}) == Pair("p2", "d0")
    assert choose(cached, p1={"kv_connector": "nixl"}) == Pair("p2", "d0")


def test_computing_here_may_be_sooner():
    cached = {"p1": 992}
    assert choose(cached, prefill_s=0.001, hand_over_s=0.1) == Pair("p1", "d0")
    assert choose(cached, prefill_s=0.001, hand_over_s=2.0) is None
    busy = {"queued_tokens": 5000}
    assert choose(cached, prefill_s=0.001, hand_over_s=0.1, p1=busy) is None
    assert choose(cached, prefill_s=0.001, hand_over_s=2.0, d={"num_requests": 3}) is not None


def test_a_load_that_fails_is_made_from_the_other_one():
    """Both have the prompt by then; from the first nothing can be loaded."""
    fleet_of = [
        *(Standin("prefill", f"p{i}", max_cached_blocks=64, prefill_token_s=0.002) for i in (0, 1)),
        Standin("decode", "d0", fail_fetch_from="p0", prefill_token_s=0.002),
    ]
    policies = {"prefill_policy": "round_robin", "decode_policy": "prefix_aware"}
    prompt = range(256)

    async def body():
        async with running_fleet(*fleet_of, **policies) as (fleet, (p0, p1, d0)):
            await until(lambda: fleet.prefixes.num_followed == 3)
            for _ in range(4):
                fleet.prefixes.index.forget("d0")  # others' blocks have pushed it out
                assert await collect(fleet, make_request(6, prompt)) == answer(6, prompt)
            loads = [m for m in d0.seen if isinstance(m, RunDecode)]
            assert [(m.handle.instance_id, m.has_other_source) for m in loads] == [
                ("p0", False),  # nobody else has it: computed on D
                ("p1", True),
                ("p0", True),
                ("p1", False),  # the other source; what has failed is no source again
                ("p1", True),
            ]
            assert fleet.counts.other_sources == fleet.counts.migrations == 1
            await until(lambda: not (p0.offers or p1.offers or d0.tasks))

    asyncio.run(asyncio.wait_for(body(), 60))
