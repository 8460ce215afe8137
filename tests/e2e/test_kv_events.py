"""KV events and routing by prefix with real instances and a real model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio

from tests.e2e.cluster import cluster

pytestmark = pytest.mark.e2e

EVENTS = {
    "enable_kv_cache_events": True,
    "endpoint": "tcp://127.0.0.1:0",
    "replay_endpoint": "tcp://127.0.0.1:0",
}
ARGUMENTS = ("--kv-cache-memory", "64MiB", "--block-size", "16")


async def replay(endpoint):
    """All events so far, as a consumer of vLLM's format reads them."""
    dealer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    dealer.connect(endpoint)
    await dealer.send_multipart([b"", bytes(8)])
    events: list[dict[str, Any]] = []
    try:
        while True:
            frames = await asyncio.wait_for(dealer.recv_multipart(), 60)
            if frames[2] == b"\xff" * 8:
                return events
            events += msgpack.unpackb(frames[3])[1]
    finally:
        dealer.close(linger=0)


def test_an_instance_tells_what_it_computed(tmp_path):
    prompt = list(range(100, 150))

    async def body():
        arguments = (*ARGUMENTS, "--kv-events-config", json.dumps(EVENTS))
        async with cluster(tmp_path, both=1, proxy=False, arguments=arguments) as made:
            url = made.instances[0].plan.url
            answer = await made.generate(url, prompt, max_tokens=15, temperature=0)
            (source,) = await made.get(f"{url}/kv_event_sources")
            first, *stored = await replay(source["replay_endpoint"])
            assert first == {"type": "AllBlocksCleared"}
            tokens = [token for event in stored for token in event["token_ids"]]
            assert tokens == [*prompt, *answer][:64]

    asyncio.run(body())


def test_a_proxy_sends_prompts_where_their_prefix_is(tmp_path):
    prefixes = [[100 + group] * 160 for group in range(5)]

    async def body():
        async with cluster(tmp_path, prefill=2, decode=1, proxy=False, arguments=ARGUMENTS) as made:
            made.start_proxy("--prefill-policy", "prefix_aware")
            await made.healthy(*made.proxies)
            await made.ready_instances(3)
            for turn in range(4):
                for prefix in prefixes:
                    prompt = [*prefix, *range(200 + turn * 20, 220 + turn * 20)]
                    # Long enough for D to hear, before the end, that what it has read is right.
                    await made.generate(made.url, prompt, max_tokens=24, temperature=0)
            status = await made.get(f"{made.url}/status")
            assert status["prefixes"]["instances_followed"] == 3
            assert status["prefixes"]["cached_tokens_routed"] == 3 * 5 * 160
            assert status["prefixes"]["blocks"] >= 2 * 5 * 10, "at a prefill and at the decode one"

    asyncio.run(body())
