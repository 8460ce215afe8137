"""A crowd of requests, a third of which are given up at random moments: nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from common.errors import TransferError
from kv_transfer.config import KVTransferConfig
from tests.kv_transfer.ends import NEEDS_NIXL, ends, until

CONNECTORS = ["shm", "shared_storage", "nccl", "multi", pytest.param("nixl", marks=NEEDS_NIXL)]
AT_ONCE = 4
WARM_UP = 16
PATIENCE_S = 60.0
RSS_SLACK = 48 << 20  # an allocator's arenas; a block leaked per request would be twice that
BLOCK_BYTES = 64 << 10


def settings(connector, directory):
    storage: dict[str, Any] = {
        "storage_dir": str(directory / "kv"),
        "storage_max_bytes": 64 * BLOCK_BYTES,
    }
    if connector == "shared_storage":
        return {"connector": connector} | storage
    if connector == "multi":
        children = (KVTransferConfig("shm"), KVTransferConfig("shared_storage", **storage))
        return {"connector": connector, "connectors": children}
    return {"connector": connector}


class Crowd:
    def __init__(self, both, seed):
        self._both = both
        self._random = random.Random(seed)
        self._slots = list(range(AT_ONCE))  # 4 blocks each
        self.num_done = self.num_given_up = 0

    async def run(self, count):
        await asyncio.gather(*(self._some(slot, count // AT_ONCE) for slot in self._slots))

    async def _some(self, slot, count):
        for i in range(count):
            await self._one(f"{slot}-{self.num_done}-{i}", [4 * slot + j for j in range(4)])
            self.num_done += 1

    async def _one(self, request_id, blocks):
        both = self._both
        handle = both.producer.offer(request_id, 64, 4)
        fetch = asyncio.ensure_future(both.fetch(handle, blocks, timeout_s=PATIENCE_S))
        gives_up = self._random.random() < 0.3
        rest = asyncio.sleep(self._random.random() * 0.01) if gives_up else asyncio.sleep(0)
        both.extend(request_id, 0, blocks[:2])
        if gives_up and self._random.random() < 0.3:  # before it is complete
            await rest
        else:
            both.extend(request_id, 2, blocks[2:], first_token=1)
            await rest
        if gives_up:
            self.num_given_up += 1
            if self._random.random() < 0.5:
                fetch.cancel()
            else:
                both.producer.release(request_id)
        await asyncio.wait({fetch}, timeout=PATIENCE_S)
        both.producer.release(request_id)
        if not fetch.cancelled() and (error := fetch.exception()) is not None:
            assert isinstance(error, TransferError) and gives_up, error
        await until(lambda: both.source.num_held <= 4 * (AT_ONCE - 1), PATIENCE_S)


def census():
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:kv")
    return len(os.listdir("/proc/self/fd")), maps, threading.active_count()


def rss_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def nothing_is_left(both):
    await until(lambda: both.source.num_held == 0, PATIENCE_S)
    await until(lambda: both.consumer.num_transfers == 0, PATIENCE_S)
    await until(lambda: both.consumer.snapshot()["blocks_quarantined"] == 0, PATIENCE_S)
    assert both.producer.num_leases == both.producer.num_transfers == 0
    assert both.producer.ledger() == []


def run(connector, tmp_path, count):
    async def body():
        async with ends(**settings(connector, tmp_path), block_bytes=BLOCK_BYTES) as both:
            crowd = Crowd(both, seed=count)
            await crowd.run(WARM_UP)
            await nothing_is_left(both)
            before, rss = census(), rss_bytes()
            await crowd.run(count)
            await nothing_is_left(both)
            assert crowd.num_given_up > count // 8
            now = census()
            assert now[:2] <= before[:2]
            assert now[2] <= before[2] + 8  # threads made on demand
            assert rss_bytes() - rss < RSS_SLACK

    asyncio.run(body())


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_hundred_requests_with_aborts_leave_nothing(connector, tmp_path):
    run(connector, tmp_path, 100)


@pytest.mark.long
@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_thousand_requests_with_aborts_leave_nothing(connector, tmp_path):
    run(connector, tmp_path, 1000)
