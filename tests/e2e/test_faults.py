"""kill -9 of an instance: nobody hangs, leases expire, the rest keeps serving."""

import asyncio
import os
import signal
import time

import aiohttp
import pytest

from tests.e2e.cluster import cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "2048", "--kv-cache-memory", "64MiB"),
    *("--max-num-batched-tokens", "64", "--kv-lease-s", "4"),
)
SHORT = [i % 700 for i in range(40)]
LONG = [i % 1500 for i in range(1500)]
LONG_ANSWER = {"max_tokens": 600, "ignore_eos": True, "temperature": 0}


async def outcome(made, tokens, sampling, seen=None):
    """(tokens seen, "done" | "error" | what went wrong): how one stream ended.

    seen:  filled while they come
    """
    seen = [] if seen is None else seen
    try:
        async for event in made.stream(made.url, tokens, **sampling):
            if "error" in event:
                return seen, "error"
            for choice in event["choices"]:
                seen += choice["token_ids"]
                if choice["finish_reason"]:
                    return seen, "done"
    except AssertionError as error:
        return seen, f"refused: {error}"
    except aiohttp.ClientError as error:
        return seen, f"broken: {error}"
    return seen, "silent end"


async def kill_while_streaming(made, victim, tokens, expected):
    """Four streams; kill -9 the victim once they run; every one must end, properly."""
    so_far: list[list[int]] = [[] for _ in range(4)]
    streams = [asyncio.create_task(outcome(made, tokens, LONG_ANSWER, each)) for each in so_far]
    await until_flowing(streams, so_far)
    os.kill(victim.pid, signal.SIGKILL)
    done, pending = await asyncio.wait(streams, timeout=60)
    assert not pending, f"a stream hangs\n{made.logs()}"
    for seen, how in [task.result() for task in streams]:
        assert how in ("done", "error") or how.startswith("refused"), f"{how}\n{made.logs()}"
        assert seen == expected[: len(seen)], "wrong tokens after a death"
        if how == "done":
            assert len(seen) == len(expected)


async def until_flowing(streams, seen, timeout_s=60.0):
    """Wait until each stream has a few tokens, or is over already."""
    deadline = time.monotonic() + timeout_s
    while not all(len(t) > 5 or s.done() for t, s in zip(seen, streams, strict=True)):
        assert time.monotonic() < deadline, "no tokens come"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_the_rest_keeps_serving_after_a_death(role, tmp_path):
    async def body():
        async with cluster(tmp_path, prefill=2, decode=2, arguments=ARGUMENTS) as made:
            expected = await made.generate(made.url, SHORT, **LONG_ANSWER)
            victim = made.of(role)[0]
            await kill_while_streaming(made, victim, SHORT, expected)
            alive = [child for child in made.instances if child is not victim]
            for _ in range(4):
                assert len(await made.generate(made.url, SHORT, max_tokens=3, ignore_eos=True)) == 3
            # Leases that the dead one held run out, and then nothing is taken anywhere.
            await made.at_rest(*alive)

    asyncio.run(body())


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_without_a_substitute_streams_end_within_seconds(role, tmp_path):
    async def body():
        async with cluster(tmp_path, prefill=1, decode=1, arguments=ARGUMENTS) as made:
            victim = made.of(role)[0]
            survivor = next(child for child in made.instances if child is not victim)
            expected = await made.generate(made.url, SHORT, **LONG_ANSWER)
            await kill_while_streaming(made, victim, SHORT, expected)
            await made.at_rest(survivor)
            # A restart at the same address is a new incarnation, and serves.
            port = int(victim.plan.url.rpartition(":")[2])
            made.instances.remove(victim)
            again = made.start_instance(role, port=port)
            await made.healthy(again)
            await made.ready_instances(2)
            assert await made.generate(made.url, SHORT, **LONG_ANSWER) == expected

    asyncio.run(body())


def test_a_dead_proxy_stops_its_work_and_a_new_one_serves(tmp_path):
    async def body():
        async with cluster(tmp_path, prefill=1, decode=1, arguments=ARGUMENTS) as made:
            streams = [asyncio.create_task(outcome(made, LONG, LONG_ANSWER)) for _ in range(3)]
            await asyncio.sleep(0.5)
            os.kill(made.proxy.pid, signal.SIGKILL)
            done, pending = await asyncio.wait(streams, timeout=60)
            assert not pending, made.logs()
            await made.at_rest()
            made.start_proxy()
            await made.healthy(made.proxy)
            await made.ready_instances(2)
            assert len(await made.generate(made.url, SHORT, max_tokens=3, ignore_eos=True)) == 3

    asyncio.run(body())


def test_sigterm_lets_running_streams_finish(tmp_path):
    async def body():
        async with cluster(tmp_path, prefill=1, decode=2, arguments=ARGUMENTS) as made:
            expected = await made.generate(made.url, SHORT, **LONG_ANSWER)
            tokens: list[list[int]] = [[] for _ in range(4)]
            streams = [asyncio.create_task(outcome(made, SHORT, LONG_ANSWER, t)) for t in tokens]
            await until_flowing(streams, tokens)
            leaving = made.of("decode")[0]
            os.kill(leaving.pid, signal.SIGTERM)
            for seen, how in await asyncio.gather(*streams):
                assert (seen, how) == (expected, "done")
            assert await asyncio.to_thread(leaving.process.wait, 30) == 0
            assert len(await made.generate(made.url, SHORT, max_tokens=3, ignore_eos=True)) == 3

    asyncio.run(body())
