"""Producer and consumer in one process: what a fetch promises while nothing breaks."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import pytest

from common.errors import HandleRefused, LeaseExpired
from kv_transfer import copier
from tests.kv_transfer.ends import NEEDS_NIXL, ends, until

CONNECTORS = ["memory", "shm", "shared_storage", "nccl", pytest.param("nixl", marks=NEEDS_NIXL)]


@pytest.fixture(params=CONNECTORS)
def both_ends(request, tmp_path):
    """`ends` with this connector's settings."""
    settings = {"connector": request.param}
    if request.param == "shared_storage":
        settings["storage_dir"] = str(tmp_path / "kv")
    return lambda **more: ends(**settings, **more)


def test_fetch_copies_every_block_and_returns_the_first_token(both_ends):
    async def body():
        async with both_ends() as both:
            handle = both.offer("r", [3, 4, 9, 1], first_token=77)
            assert await both.fetch(handle, [0, 5, 6, 7]) == 77
            both.assert_copied([3, 4, 9, 1], [0, 5, 6, 7])
            assert both.source.num_held == 0
            assert both.producer.snapshot()["released"] == 1
            assert both.consumer.snapshot()["bytes_read"] == 4 * 4096

    asyncio.run(body())


def test_blocks_not_asked_for_keep_their_bytes(both_ends):
    async def body():
        async with both_ends() as both:
            before = both.target.blocks.copy()
            await both.fetch(both.offer("r", [3, 4]), [8, 2])
            untouched = [i for i in range(16) if i not in (8, 2)]
            assert (both.target.blocks[untouched] == before[untouched]).all()

    asyncio.run(body())


def test_skipped_blocks_are_not_copied(both_ends):
    async def body():
        async with both_ends() as both:
            before = both.target.blocks.copy()
            handle = both.offer("r", [3, 4, 9], first_token=5)
            assert await both.fetch(handle, [12], skip_blocks=2) == 5
            both.assert_copied([9], [12])
            assert (both.target.blocks[:12] == before[:12]).all()
            handle = both.offer("all skipped", [3, 4, 9], first_token=6)
            assert await both.fetch(handle, [], skip_blocks=3) == 6

    asyncio.run(body())


def test_a_growing_offer_is_copied_while_it_grows(both_ends):
    async def body():
        async with both_ends() as both:
            handle = both.producer.offer("r", 64, 4)
            fetch = asyncio.ensure_future(both.fetch(handle, [10, 11, 12, 13]))
            for i, block in enumerate([2, 3, 7]):
                both.extend("r", i, [block])
                await until(lambda i=i: both.consumer.snapshot()["bytes_read"] == (i + 1) * 4096)
                both.assert_copied([block], [10 + i])
                assert not fetch.done()
            both.extend("r", 3, [8], first_token=1)
            assert await fetch == 1
            both.assert_copied([2, 3, 7, 8], [10, 11, 12, 13])

    asyncio.run(body())


def test_many_fetches_at_once(both_ends):
    async def body():
        async with both_ends(num_blocks=64) as both:
            handles = [both.offer(f"r{i}", [2 * i, 2 * i + 1], first_token=i) for i in range(32)]
            fetches = [
                both.fetch(handle, [63 - 2 * i, 62 - 2 * i]) for i, handle in enumerate(handles)
            ]
            assert await asyncio.gather(*fetches) == list(range(32))
            both.assert_copied(range(64), list(range(63, -1, -1)))

    asyncio.run(body())


def test_an_offer_of_thousands_of_blocks_comes_in_several_messages():
    async def body():
        async with ends("shm", num_blocks=3000, block_bytes=64) as both:
            order = list(range(2999, -1, -1))
            assert await both.fetch(both.offer("r", order, first_token=0), list(range(3000))) == 0
            both.assert_copied(order, list(range(3000)))

    asyncio.run(body())


def test_an_empty_prompt_prefix_hit_still_ends():
    """A last batch without blocks: everything had joined before the token was sampled."""

    async def body():
        async with ends() as both:
            handle = both.producer.offer("r", 32, 2)
            both.extend("r", 0, [4, 5])
            both.extend("r", 2, [], first_token=3)
            assert await both.fetch(handle, [1, 2]) == 3

    asyncio.run(body())


def test_holding_an_offer_keeps_it_beyond_its_lease(both_ends):
    async def body():
        async with both_ends(lease_s=0.3) as both:
            handle = both.offer("r", [3, 4], first_token=9)
            async with both.consumer.hold(handle, time.monotonic() + 5) as held:
                await asyncio.sleep(1.0)
                assert await held.read([0, 1], 0) == 9

    asyncio.run(body())


def test_leaving_a_held_offer_unread_frees_it(both_ends):
    async def body():
        async with both_ends() as both:
            handle = both.offer("r", [3, 4])
            async with both.consumer.hold(handle, time.monotonic() + 5):
                await until(lambda: both.producer.num_transfers == 1)
            await until(lambda: both.source.num_held == 0)
            assert both.producer.snapshot()["aborted"] == 1

    asyncio.run(body())


def test_a_handle_works_once(both_ends):
    async def body():
        async with both_ends() as both:
            handle = both.offer("r", [3, 4])
            await both.fetch(handle, [0, 1])
            with pytest.raises(HandleRefused, match="released"):
                await both.fetch(handle, [0, 1])

    asyncio.run(body())


def test_two_hundred_fetches_leave_nothing_behind(both_ends):
    async def body():
        async with both_ends() as both:

            async def fetch_some(count):
                for i in range(count):
                    await both.fetch(both.offer(f"r{i}", [i % 16]), [(i + 1) % 16])

            def census():
                gc.collect()  # pools of tests before this one
                maps = Path("/proc/self/maps").read_text().count("memfd:kv")
                return len(os.listdir("/proc/self/fd")), threading.active_count(), maps

            await fetch_some(8)
            before, tasks = census(), len(asyncio.all_tasks())
            await fetch_some(200)
            fds, threads, maps = census()
            assert (fds, maps) == (before[0], before[2])
            assert threads <= before[1] + copier.NUM_THREADS  # made on demand
            await until(lambda: len(asyncio.all_tasks()) <= tasks)

    asyncio.run(body())


def test_an_unread_offer_expires_on_time():
    async def body():
        async with ends(lease_s=0.3) as both:
            handle = both.offer("r", [3, 4])
            began = time.monotonic()
            await until(lambda: both.source.num_held == 0)
            assert 0.25 < time.monotonic() - began < 4.6
            assert both.producer.snapshot()["expired"] == 1
            with pytest.raises(LeaseExpired):
                await both.fetch(handle, [0, 1])

    asyncio.run(body())


def test_a_slow_prefill_does_not_expire_its_own_offer():
    async def body():
        async with ends(lease_s=0.3) as both:
            handle = both.producer.offer("r", 96, 6)
            await asyncio.sleep(0.5)  # queued: holds nothing yet
            for i in range(5):
                both.extend("r", i, [i])
                await asyncio.sleep(0.15)
            both.extend("r", 5, [5], first_token=2)
            assert await both.fetch(handle, list(range(6))) == 2

    asyncio.run(body())


def test_the_ledger_names_no_secret():
    async def body():
        async with ends() as both:
            handle = both.offer("r", [3, 4])
            (row,) = both.producer.ledger()
            assert row["offer"] == handle.offer_id[:8]
            assert handle.offer_id not in str(row)
            assert (row["request_id"], row["state"], row["blocks"]) == ("r", "complete", 2)
            assert row["peer"] == "" and 0 <= row["age_s"] < 5
            async with both.consumer.hold(handle, time.monotonic() + 5):
                await until(lambda: both.producer.ledger()[0]["peer"] == "d")
                await until(lambda: both.consumer.ledger()[0]["named"] == 2)
                (row,) = both.consumer.ledger()
                assert (row["offer"], row["producer"]) == (handle.offer_id[:8], "p")
                assert (row["phase"], row["blocks"]) == ("held", 2) and row["age_s"] >= 0
                assert handle.offer_id not in str(row)
            assert both.consumer.ledger() == []
            await until(lambda: both.producer.ledger() == [])

    asyncio.run(body())
