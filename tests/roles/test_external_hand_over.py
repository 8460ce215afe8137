"""Hand-overs as a router of others drives them: two workers, their sealed parameters, no proxy."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from common.cluster_key import derive
from common.errors import BadRequest, Unavailable
from common.instance.external_router import HERE, ExternalRouter
from common.unread import MAX_UNREAD_BYTES, size_of
from common.wire import Tokens
from tests.roles.test_hand_over import make, pair

KEY = derive("a cluster key for these tests")


@contextlib.asynccontextmanager
async def routed():
    """(both workers, P's router side, D's)."""
    async with pair() as both:
        sides = []
        for worker in (both.prefill, both.decode):
            outbox = worker.requests.outbox
            side = ExternalRouter(outbox._send, KEY, lambda: True)
            outbox._send, side.worker = side.send, worker
            sides.append(side)
        yield both, *sides


def one_token(request):
    """What is left of the client's request in the leg to P."""
    return msgspec.structs.replace(
        request, sampling=msgspec.structs.replace(request.sampling, max_tokens=1, min_tokens=1)
    )


async def tokens_of(events):
    found: list[int] = []
    async for event in events:
        assert event.index == len(found), "from the first token on, each once"
        found += event.token_ids
    return found


async def run(prefill, decode, request):
    params, event = await prefill.offer(one_token(request))
    assert len(event.token_ids) == 1
    return await tokens_of(decode.load(request, params))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 200])
def test_tokens_equal_those_of_one_engine(length):
    async def body():
        async with routed() as (both, prefill, decode):
            for name, sampling in (
                ("greedy", {}),
                ("seeded", {"temperature": 0.9, "seed": 5, "min_tokens": 2}),
            ):
                expected = await both.whole(make(f"whole-{name}", length, **sampling))
                assert await run(prefill, decode, make(name, length, **sampling)) == expected
            assert both.decode.counts.loads == 2
            assert both.decode.counts.recomputes == 0
            await both.at_rest()

    asyncio.run(body())


def test_a_second_reader_computes_and_says_the_same():
    async def body():
        async with routed() as (both, prefill, decode):
            request = make("r", 40)
            params, _ = await prefill.offer(one_token(request))
            first = await tokens_of(decode.load(request, params))
            again = msgspec.structs.replace(request, request_id="again")
            assert await tokens_of(decode.load(again, params)) == first
            assert both.decode.counts.recomputes == 1
            await both.at_rest()

    asyncio.run(body())


def test_log_probabilities_of_the_prompt_are_computed_and_nothing_stays_held():
    async def body():
        async with routed() as (both, prefill, decode):
            request = make("r", 40, prompt_logprobs=0)
            params, _ = await prefill.offer(one_token(make("r", 40)))
            events = [event async for event in decode.load(request, params)]
            assert len(events[0].prompt_logprobs) == 40
            assert both.decode.counts.loads == 0
            await both.at_rest()

    asyncio.run(body())


def test_whoever_leaves_frees_everything():
    async def body():
        async with routed() as (both, prefill, decode):
            request = make("r", 40, max_tokens=400)
            params, _ = await prefill.offer(one_token(request))
            events = decode.load(request, params)
            await anext(events)
            await events.aclose()
            leaving = asyncio.create_task(prefill.offer(one_token(make("gone", 400))))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await both.at_rest()

    asyncio.run(body())


@pytest.mark.parametrize("change", ["another prompt", "another tenant", "no text", "forged"])
def test_what_is_not_meant_for_this_request_is_refused(change):
    async def body():
        async with routed() as (both, prefill, decode):
            request = make("r", 40)
            params, _ = await prefill.offer(one_token(request))
            if change == "another prompt":
                request = make("r", 40, seed=3)
            elif change == "another tenant":
                request = msgspec.structs.replace(request, cache_salt="tenant")
            elif change == "no text":
                params["remote_request_id"] = None
            else:
                params["remote_request_id"] = "A" + params["remote_request_id"][1:-1] + "A"
            with pytest.raises(BadRequest, match="kv_transfer_params"):
                await tokens_of(decode.load(request, params))
            both.prefill.abort("r")
            await both.at_rest()

    asyncio.run(body())


def test_the_wrong_role_says_which_it_is():
    async def body():
        async with routed() as (both, prefill, decode):
            request = make("r", 40)
            with pytest.raises(BadRequest, match="decode instance"):
                await decode.offer(one_token(request))
            params, _ = await prefill.offer(one_token(request))
            with pytest.raises(BadRequest, match="prefill instance"):
                await tokens_of(
                    prefill.load(msgspec.structs.replace(request, request_id="x"), params)
                )
            both.prefill.abort("r")
            await both.at_rest()

    asyncio.run(body())


def test_a_reader_that_takes_nothing_is_given_up():
    """What waits for it is bounded: about a MiB, then the engine stops working for it."""

    async def body():
        async with routed() as (both, prefill, decode):
            request = make("r", 40, max_tokens=400, logprobs=20)
            params, _ = await prefill.offer(one_token(make("r", 40)))
            events = decode.load(request, params)
            first = await anext(events)
            for _ in range(MAX_UNREAD_BYTES // size_of(first) + 2):  # as a fast engine would
                decode.send(HERE, Tokens((first,), (1,)))
            with pytest.raises(Unavailable, match="does not read"):
                async for _ in events:
                    pass
            await both.at_rest()

    asyncio.run(body())
