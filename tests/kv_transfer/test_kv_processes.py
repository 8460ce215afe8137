"""Producer and consumer in two processes, one of which dies, stops, or comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time

import msgspec
import pytest

from common.errors import PeerLost, TransferError
from common.wire import KVHandle
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from tests.kv_transfer.ends import NEEDS_NIXL, Pool, ends, identity, until

NIXL = pytest.param("nixl", marks=NEEDS_NIXL)


class Process:
    def __init__(self, process, first_answer):
        self._process = process
        self.first_answer = first_answer
        self.pid = process.pid

    async def ask(self, **command):
        self.tell(**command)
        return await self.answer()

    def tell(self, **command):
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def answer(self):
        return await _answer(self._process)

    async def offer(self, request_id, num_blocks):
        answer = await self.ask(do="offer", request_id=request_id, num_blocks=num_blocks)
        return msgspec.convert(answer["handle"], KVHandle)

    async def extend(self, request_id, first, block_ids, **last):
        await self.ask(do="extend", request_id=request_id, first=first, block_ids=block_ids, **last)

    async def kill(self):
        self._process.kill()
        await self._process.wait()


async def _answer(process):
    while line := await asyncio.wait_for(process.stdout.readline(), 20):
        if line.startswith(b"{"):  # libraries may print too
            return json.loads(line)
    raise AssertionError("the process has ended")


@contextlib.asynccontextmanager
async def process(role, **settings):
    made = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.kv_transfer.peer_process",
        role,
        json.dumps(settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(made, await _answer(made))
    finally:
        if made.returncode is None:
            made.send_signal(signal.SIGCONT)
            assert made.stdin is not None
            made.stdin.close()
            try:
                await asyncio.wait_for(made.wait(), 10)
            except asyncio.TimeoutError:
                made.kill()
                await made.wait()


class Consumer:
    """The end in this process."""

    def __init__(self, connector, *, silence_s=3.0, num_blocks=16, block_bytes=4096, **settings):
        self.pool = Pool(num_blocks, block_bytes, seed=2)
        self.landed: list[int] = []
        info = identity("d")
        transport = make_transport(KVTransferConfig(connector, **settings), self.pool.region, info)
        self.consumer = KVConsumer(
            info,
            self.pool.region,
            transport,
            silence_s=silence_s,
            on_landed=self.landed.extend,
        )

    def fetch(self, handle, into, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        return asyncio.ensure_future(self.consumer.fetch(handle, into, 0, deadline))

    async def read_bytes(self, count):
        await until(lambda: self.consumer.snapshot()["bytes_read"] == count)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.consumer.close()
        self.pool.close()


SOURCE = Pool(seed=1).blocks  # what the other process has


@pytest.fixture(params=["shm", NIXL, "shared_storage"])
def settings(request, tmp_path):
    storage = request.param == "shared_storage"
    return {"connector": request.param} | ({"storage_dir": str(tmp_path / "kv")} if storage else {})


def test_a_growing_offer_crosses_processes(settings):
    async def body():
        async with process("producer", **settings) as producer, Consumer(**settings) as consumer:
            handle = await producer.offer("r", 4)
            fetch = consumer.fetch(handle, [8, 9, 10, 11])
            await producer.extend("r", 0, [5, 6])
            await consumer.read_bytes(2 * 4096)
            assert not fetch.done()
            await producer.extend("r", 2, [1, 3], first_token=9)
            assert await fetch == 9
            assert (consumer.pool.blocks[[8, 9, 10, 11]] == SOURCE[[5, 6, 1, 3]]).all()
            assert (await producer.ask(do="snapshot"))["held"] == 0
            assert consumer.consumer.snapshot()["peers"] == 1
            await producer.kill()  # its memory is let go at once, although nothing was being read
            await until(lambda: consumer.consumer.snapshot()["peers"] == 0)

    asyncio.run(body())


def test_kill_of_the_producer_in_the_middle_is_noticed_in_time(settings):
    async def body():
        async with process("producer", **settings) as producer, Consumer(**settings) as consumer:
            fetch = consumer.fetch(await producer.offer("r", 4), [8, 9, 10, 11])
            await producer.extend("r", 0, [5, 6])
            await consumer.read_bytes(2 * 4096)
            began = time.monotonic()
            await producer.kill()
            with pytest.raises(PeerLost):
                await fetch
            assert time.monotonic() - began < 7.5
            await until(lambda: consumer.consumer.snapshot()["peers"] == 0)

    asyncio.run(body())


def test_a_stopped_producer_is_lost_after_its_silence():
    settings = {"connector": "shm"}

    async def body():
        async with (
            process("producer", **settings) as producer,
            Consumer(silence_s=1.0, **settings) as consumer,
        ):
            fetch = consumer.fetch(await producer.offer("r", 4), [8, 9, 10, 11])
            await producer.extend("r", 0, [5, 6])
            await consumer.read_bytes(2 * 4096)
            os.kill(producer.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(PeerLost):
                await fetch
            assert 0.8 < time.monotonic() - began < 6.0
            os.kill(producer.pid, signal.SIGCONT)
            snapshot = {"held": 1}
            while snapshot["held"]:  # it finds the cancellation when it wakes
                snapshot = await producer.ask(do="snapshot")
                assert time.monotonic() - began < 9

    asyncio.run(body())


def test_kill_of_the_consumer_frees_within_the_lease():
    async def body():
        async with ends("shm", lease_s=0.7) as both, process("consumer", connector="shm") as peer:
            handle = both.producer.offer("r", 64, 4)
            both.extend("r", 0, [5, 6])
            peer.tell(handle=msgspec.to_builtins(handle), into=[0, 1, 2, 3])
            await until(lambda: both.producer.num_transfers == 1)
            await asyncio.sleep(0.9)  # renewed meanwhile
            assert both.source.num_held == 2
            await peer.kill()
            began = time.monotonic()
            await until(lambda: both.source.num_held == 0)
            assert time.monotonic() - began < 5.7
            both.extend("r", 2, [7, 8], first_token=1)
            assert both.source.num_held == 0

    asyncio.run(body())


def test_a_restarted_producer_refuses_its_predecessors_handles(settings):
    async def body():
        async with Consumer(**settings) as consumer:
            async with process("producer", **settings) as before:
                old = await before.offer("r", 2)
                await before.extend("r", 0, [5, 6], first_token=1)
                await before.kill()
            bind = before.first_answer["endpoint"]
            async with process("producer", bind=bind, **settings) as after:
                with pytest.raises(PeerLost, match="restarted"):
                    await consumer.fetch(old, [0, 1])
                new = await after.offer("r", 2)
                await after.extend("r", 0, [3, 4], first_token=2)
                assert await consumer.fetch(new, [0, 1]) == 2
                assert (consumer.pool.blocks[[0, 1]] == SOURCE[[3, 4]]).all()

    asyncio.run(body())


def test_stored_blocks_survive_a_restart_and_are_not_written_again(tmp_path):
    settings = {"connector": "shared_storage", "storage_dir": str(tmp_path / "kv")}

    def files():
        found = [path for path in (tmp_path / "kv").rglob("*") if path.is_file()]
        return {path: path.stat().st_ino for path in found}

    async def hand_over(first_token):
        async with process("producer", **settings) as producer, Consumer(**settings) as consumer:
            handle = await producer.offer("r", 2)
            await producer.extend("r", 0, [5, 6], first_token=first_token)
            assert await consumer.fetch(handle, [0, 1]) == first_token
            assert (consumer.pool.blocks[[0, 1]] == SOURCE[[5, 6]]).all()

    asyncio.run(hand_over(1))
    before = files()
    asyncio.run(hand_over(2))
    assert len(before) == 2 and files() == before


@NEEDS_NIXL
def test_a_nixl_read_that_hangs_is_quarantined_until_its_connection_is_broken():
    """The producer never polls, so the first read cannot even connect."""

    async def body():
        async with (
            process("producer", connector="nixl", polls=False) as producer,
            Consumer("nixl") as consumer,
        ):
            handle = await producer.offer("r", 2)
            await producer.extend("r", 0, [5, 6], first_token=1)
            began = time.monotonic()
            with pytest.raises(TransferError, match="quarantined") as caught:
                await consumer.fetch(handle, [0, 1], timeout_s=0.5)
            assert time.monotonic() - began < 8
            assert caught.value.quarantine == (0, 1)
            assert consumer.landed == []
            await consumer.consumer.close()
            await until(lambda: consumer.landed == [0, 1])

    asyncio.run(body())
