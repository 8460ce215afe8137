"""The promise: identical tokens co-located and apart, over every connector, alone and in a crowd.

The oracle is the co-located engine (`--role both`), asked one request at a time on its own port.
"""

import asyncio
import random
from typing import Any

import pytest

from tests.e2e.cluster import cluster, skip_without

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_PROMPTS = 50
VOCAB = 2000
ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "2048", "--kv-cache-memory", "256MiB"),
    *("--max-num-batched-tokens", "256"),
)


def workload():
    """50 requests: lengths 1 to 1,500, a third share prefixes, half greedy and half seeded."""
    draw = random.Random(7)
    shared = [[draw.randrange(VOCAB) for _ in range(700)] for _ in range(2)]
    lengths = [1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1500]
    lengths += [int(1500 ** draw.random()) for _ in range(NUM_PROMPTS - len(lengths))]
    made = []
    for i, length in enumerate(lengths):
        tokens = [draw.randrange(VOCAB) for _ in range(length)]
        if i % 3 == 0:
            common = min(length - 1, draw.randrange(1, 700))
            tokens = shared[i % 2][:common] + tokens[common:]
        sampling: dict[str, Any] = {
            "max_tokens": draw.randrange(1, 24),
            "temperature": 0,
            "ignore_eos": True,
        }
        if i % 2:
            sampling |= {"temperature": 0.8, "seed": 1000 + i}
        made.append((tokens, sampling))
    return made


async def run(made, url, concurrency):
    """All answers, in order, with at most `concurrency` requests in flight."""
    places = asyncio.Semaphore(concurrency)

    async def one(tokens, sampling):
        async with places:
            return await made.generate(url, tokens, **sampling)

    return await asyncio.gather(*(one(*request) for request in workload()))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def oracle(request, tmp_path_factory):
    """(dtype, the tokens of one co-located instance)."""
    directory = tmp_path_factory.mktemp("oracle")

    async def body():
        arguments = (*ARGUMENTS, "--dtype", request.param)
        async with cluster(directory, both=1, proxy=False, arguments=arguments) as made:
            url = made.instances[0].plan.url
            alone = await run(made, url, 1)
            crowded = await run(made, url, 16)
            return alone, crowded

    alone, crowded = asyncio.run(body())
    assert crowded == alone
    assert len({tuple(tokens) for tokens in alone}) > NUM_PROMPTS // 2  # it is a varied workload
    return request.param, alone


@pytest.mark.parametrize("connector", ["shm", "nixl", "shared_storage"])
def test_tokens_are_those_of_one_instance(connector, oracle, tmp_path):
    dtype, expected = oracle
    skip_without(connector)

    async def body():
        arguments = (*ARGUMENTS, "--dtype", dtype)
        options = {"connector": connector, "arguments": arguments}
        async with cluster(tmp_path, prefill=1, decode=1, **options) as made:
            assert await run(made, made.url, 1) == expected
            assert await run(made, made.url, 16) == expected
            made.start_instance("prefill")
            made.start_instance("decode")
            await made.healthy()
            await made.ready_instances(4)
            assert await run(made, made.url, 16) == expected
            assert await run(made, made.url, 1) == expected
            loads = [await made.metrics(child) for child in made.of("decode")]
            assert all(each["kv_loads_total"] > 0 for each in loads)
            # Nothing is computed twice, but where the first token was the last: there the abort of
            # the hand-over and the end of the offer may meet.
            single = 4 * sum(sampling["max_tokens"] == 1 for _, sampling in workload())
            assert sum(each["recomputes_total"] for each in loads) <= single
            await made.at_rest()

    asyncio.run(body())


@pytest.mark.parametrize("connector", ["shm", "nixl", "shared_storage"])
@pytest.mark.parametrize("sizes", [(16, 64), (64, 16)])
def test_block_sizes_may_differ_between_processes(connector, sizes, tmp_path):
    """The oracle is the decode instance itself, which computes whole what it is asked directly."""
    skip_without(connector)

    async def body():
        options = {"connector": connector, "arguments": ARGUMENTS}
        async with cluster(tmp_path, proxy=False, **options) as made:
            made.start_proxy()
            for role, size in zip(("prefill", "decode"), sizes, strict=True):
                made.start_instance(role, "--block-size", str(size), "--dtype", "float32")
            await made.healthy()
            await made.ready_instances(2)
            (decode,) = made.of("decode")
            for tokens, sampling in workload()[:16]:
                expected = await made.generate(decode.plan.url, tokens[::-1], **sampling)
                assert await made.generate(made.url, tokens[::-1], **sampling) == expected
            counted = await made.metrics(decode)
            assert counted["kv_loads_total"] > 8
            await made.at_rest()

    asyncio.run(body())
