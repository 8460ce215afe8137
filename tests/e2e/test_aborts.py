"""A client that hangs up, at any moment, leaves nothing behind on any instance."""

import asyncio
import contextlib

import aiohttp
import pytest

from tests.e2e.cluster import cluster, skip_without

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "2048", "--kv-cache-memory", "64MiB"),
    *("--max-num-batched-tokens", "64"),
)
LONG = [i % 1500 for i in range(1500)]
SHORT = [i % 700 for i in range(40)]


async def hang_up_after(made, delay_s, tokens):
    """A streamed request whose connection is cut after `delay_s`."""
    body = {
        "token_ids": tokens,
        "sampling_params": {"max_tokens": 400, "ignore_eos": True, "temperature": 0},
        "stream": True,
    }
    with contextlib.suppress(asyncio.TimeoutError):
        timeout = aiohttp.ClientTimeout(total=delay_s)
        url = f"{made.url}/inference/v1/generate"
        async with made.session.post(url, json=body, timeout=timeout) as answer:
            async for _ in answer.content:
                pass


@pytest.mark.parametrize("connector", ["shm", "nixl", "shared_storage"])
def test_hang_ups_at_every_stage_free_all_blocks(connector, tmp_path):
    skip_without(connector)

    async def body():
        options = {"connector": connector, "arguments": ARGUMENTS}
        async with cluster(tmp_path, prefill=1, decode=1, **options) as made:
            # Before prefill begins, while it runs, around the hand-over, while decode runs.
            took = []
            for delay_s in (0.002, 0.02, 0.1, 0.2, 0.4, 0.8, 1.5):
                await hang_up_after(made, delay_s, LONG)
                took.append(await made.at_rest())
            # Within a second, is the promise; the machine itself may pause in one or two of them.
            assert sorted(took)[len(took) // 2] < 1.0, took
            # Many at once: some run, some wait in queues.
            delays = [0.05 * i for i in range(1, 25)]
            await asyncio.gather(
                *(hang_up_after(made, s, LONG if i % 2 else SHORT) for i, s in enumerate(delays))
            )
            await made.at_rest()
            # And the system is as good as before.
            tokens = await made.generate(made.url, SHORT, max_tokens=5, ignore_eos=True)
            assert len(tokens) == 5

    asyncio.run(body())


def test_a_hang_up_reads_as_a_prefix_of_the_full_answer(tmp_path):
    async def body():
        async with cluster(tmp_path, prefill=1, decode=1, arguments=ARGUMENTS) as made:
            sampling = {"max_tokens": 60, "ignore_eos": True, "temperature": 0.8, "seed": 3}
            full = await made.generate(made.url, SHORT, **sampling)
            seen: list[int] = []
            async for event in made.stream(made.url, SHORT, **sampling):
                seen += event["choices"][0]["token_ids"] if event["choices"] else []
                if len(seen) > 20:
                    break
            assert seen == full[: len(seen)]
            await made.at_rest()

    asyncio.run(body())
