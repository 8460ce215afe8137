"""A thousand requests over real processes, a third of them given up at random moments: afterwards
every process has what it had before. For each connector; minutes."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest

from tests.e2e.cluster import cluster, skip_without
from tests.e2e.test_aborts import hang_up_after

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

NUM_REQUESTS = 1000
NUM_WARM_UP = 100
AT_ONCE = 8
MORE_FDS, MORE_THREADS, MORE_RSS = 8, 4, 48 << 20
ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "1024", "--kv-cache-memory", "64MiB"),
    *("--max-num-batched-tokens", "256"),
)


class Crowd:
    def __init__(self, made, seed):
        self._made = made
        self._random = random.Random(seed)
        self.num_given_up = 0

    async def run(self, count):
        left = iter(range(count))

        async def some():
            for _ in left:
                await self._one()

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    async def _one(self):
        draw = self._random
        tokens = [draw.randrange(700) for _ in range(draw.choice((10, 100, 400)))]
        if draw.random() < 0.3:
            self.num_given_up += 1
            await hang_up_after(self._made, draw.uniform(0.001, 0.15), tokens)
        else:
            sampling = {"max_tokens": 8, "ignore_eos": True, "temperature": 0}
            assert len(await self._made.generate(self._made.url, tokens, **sampling)) == 8


def census(made):
    """Per process: file descriptors, mapped KV pools, threads, resident bytes of its own."""
    found = {}
    for child in (*made.instances, made.proxy):
        proc = Path("/proc") / str(child.process.pid)
        maps = (proc / "maps").read_text().count("memfd:")
        # Without the KV pools, whose pages count as they are first touched, here and by a reader.
        (own,) = re.findall(r"RssAnon:\s+(\d+) kB", (proc / "status").read_text())
        threads = len(list((proc / "task").iterdir()))
        found[child.plan.name] = (len(list((proc / "fd").iterdir())), maps, threads, int(own) << 10)
    return found


@pytest.mark.parametrize("connector", ["shm", "nixl", "nccl", "shared_storage", "multi"])
def test_a_thousand_requests_leave_nothing(connector, tmp_path):
    skip_without(connector)

    async def body():
        options = {"connector": connector, "arguments": ARGUMENTS}
        async with cluster(tmp_path, prefill=1, decode=1, **options) as made:
            crowd = Crowd(made, seed=7)
            await crowd.run(NUM_WARM_UP)
            await made.at_rest()
            before = census(made)
            await crowd.run(NUM_REQUESTS)
            await made.at_rest()
            assert crowd.num_given_up > NUM_REQUESTS // 4
            after = census(made)
            print(f"{connector}: before {before}, after {after}")
            for name, (fds, maps, threads, rss) in before.items():
                assert after[name][0] <= fds + MORE_FDS, name
                assert after[name][1] <= maps, name
                assert after[name][2] <= threads + MORE_THREADS, name
                assert after[name][3] <= rss + MORE_RSS, name

    asyncio.run(body())
