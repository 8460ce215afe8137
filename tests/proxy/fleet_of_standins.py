"""Stand-in instances and a proxy's fleet in one event loop, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

from benchmarks.standin_instance import Standin, StandinInstance, answer_token
from common.request import EngineRequest, FinishReason, SamplingParams
from proxy.membership import Membership, Timing
from proxy.relay import Fleet

FAST = Timing(suspect_s=0.7, dead_s=1.2, poll_s=0.2)
PROMPT = tuple(range(40, 60))


def make_request(max_tokens=20, prompt=PROMPT, **fields):
    sampling = SamplingParams(max_tokens, temperature=0.0)
    return EngineRequest(uuid.uuid4().hex, tuple(prompt), sampling, **fields)


def answer(max_tokens=20, prompt=PROMPT, first=0):
    config = Standin()
    return [answer_token(prompt, index, config) for index in range(first, max_tokens)]


async def until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def collect(fleet, request, got=None):
    """All tokens of the answer; checks that the events are consecutive and end properly."""
    got = [] if got is None else got
    finish = None
    async for event in fleet.generate(request):
        assert event.request_id == request.request_id
        assert event.index == len(request.output_token_ids) + len(got)
        got.extend(event.token_ids)
        finish = event.finish_reason
    assert finish in (FinishReason.STOP, FinishReason.LENGTH)
    return got


@contextlib.asynccontextmanager
async def running_fleet(*configs, timing=FAST, wait=True, **settings):
    """Starts the stand-ins of `configs`, watched as static instances; yields (fleet, instances)."""
    instances = [StandinInstance(config) for config in configs]
    for instance in instances:
        await instance.start()
    fleet = Fleet(Membership(timing=timing), **settings)
    fleet.start()
    try:
        for instance in instances:
            fleet.membership.watch(instance.address, "static")
        if wait:
            await until(lambda: num_ready(fleet) == len(instances))
        yield fleet, instances
    finally:
        await fleet.close()
        for instance in instances:
            await instance.close()


def num_ready(fleet):
    return sum(m.state.value == "ready" for m in fleet.membership.members.values())


def names(instance):
    return [type(message).__name__ for message in instance.seen]


def is_idle(instance):
    return not (instance.sequences or instance.tasks or instance.offers)


def pd(prefills=1, decodes=1, **changes):
    """Settings of an XpYd fleet."""
    return [
        *(Standin("prefill", f"p{i}", **changes) for i in range(prefills)),
        *(Standin("decode", f"d{i}", **changes) for i in range(decodes)),
    ]
