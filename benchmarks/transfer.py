"""How fast each connector moves KV between two processes, against what the machine can do.

    python -m benchmarks.transfer                      shm, nixl, nccl, shared_storage
    python -m benchmarks.transfer --connectors nixl --rounds 9 --megabytes 64

In each round everything is measured once, in turn: a plain copy out of the other process's memory
(`memcpy`), a NIXL read of the same descriptors without anything around it (`bare nixl`), and a
whole fetch through each connector, from the handle to the first token. Ratios are taken within
rounds; what is reported is their median. Targets: shm at least 0.8 of memcpy, nixl at least 0.9 of
the bare read. Latency: a fetch of one block.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common.wire import KVHandle
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from kv_transfer.identity import KVIdentity
from kv_transfer.producer import KVProducer
from kv_transfer.region import KVRegion
from kv_transfer.transport import nixl
from kv_transfer.transport.base import Gate, Peer, Transport
from kv_transfer.transport.nixl import NixlPeer, NixlTransport
from kv_transfer.transport.shm import ShmTransport

FINGERPRINT = "model=benchmark,block_size=16"
BLOCK_BYTES = 1 << 20
CONNECTORS = ("shm", "nixl", "nccl", "shared_storage")
CHECKSUMS = {"nixl, no checksums": False, "nixl, compared": True}  # else: across machines only
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Filled:
    """What an engine would report of one step."""

    request_id: str
    first: int
    block_ids: list[int]
    epochs: list[int]
    hashes: list[str]
    is_last: bool


def make_pool(num_blocks: int, seed: int) -> KVRegion:
    """Touched memory with noise in it; it lives as long as the process."""
    fd = os.memfd_create("kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_blocks * BLOCK_BYTES)
    memory = mmap.mmap(fd, num_blocks * BLOCK_BYTES)
    region = KVRegion(np.frombuffer(memory, np.uint8).ctypes.data, num_blocks, BLOCK_BYTES, fd)
    noise = np.random.default_rng(seed).integers(0, 256, BLOCK_BYTES, np.uint8)
    for i, block in enumerate(region.blocks()):
        block[:] = noise
        block[:8] = i
    _pools.append(memory)
    return region


_pools: list[mmap.mmap] = []


def settings_of(connector: str, directory: str) -> KVTransferConfig:
    if connector in CHECKSUMS:
        return KVTransferConfig("nixl", checksum=CHECKSUMS[connector])
    return KVTransferConfig(
        connector, storage_dir=directory if connector == "shared_storage" else ""
    )


def identity(name: str) -> KVIdentity:
    return KVIdentity(name, f"{name}-{uuid.uuid4().hex}", FINGERPRINT)


# --- the process that has the blocks -------------------------------------------------------------


class Serving:
    def __init__(self, names: Sequence[str], num_blocks: int, directory: str) -> None:
        self._region = make_pool(num_blocks, seed=1)
        self._producers: dict[str, KVProducer] = {}
        for name in names:
            info = identity("p")
            self._producers[name] = KVProducer(
                info,
                self._region,
                make_transport(settings_of(name, directory), self._region, info),
                free=lambda blocks: None,
                epochs=lambda blocks: [1] * len(blocks),
                lease_s=TIMEOUT_S,
            )

    async def start(self) -> None:
        for producer in self._producers.values():
            await producer.start("tcp://127.0.0.1:0")
        described = ShmTransport(self._region).describe()
        bare = self._producers.get("nixl, no checksums")
        say(
            shm=described.hex(),
            nixl=bare.transport.describe().hex() if bare is not None else "",
        )

    async def offer(self, name: str, blocks: list[int]) -> None:
        """Answers when all of it can be read: making checksums and files is prefill's time."""
        producer, request_id = self._producers[name], uuid.uuid4().hex
        handle = producer.offer(request_id, 16 * len(blocks), len(blocks))
        hashes = [f"{block:064x}" for block in blocks]
        filled = Filled(request_id, 0, blocks, [1] * len(blocks), hashes, True)
        producer.extend(filled, 1)
        while producer.num_leases == 0:  # noqa: ASYNC110 — a producer tells nobody but consumers
            await asyncio.sleep(0.001)
        say(handle=msgspec.to_builtins(handle))

    async def poll(self, is_done: asyncio.Event) -> None:
        """For the bare reads, which no producer knows of."""
        bare = self._producers.get("nixl, no checksums")
        while bare is not None and not is_done.is_set():
            bare.transport.poll()
            await asyncio.sleep(0.002)


async def serve(names: list[str], num_blocks: int, directory: str) -> None:
    serving = Serving(names, num_blocks, directory)
    await serving.start()
    is_done = asyncio.Event()
    polling = asyncio.ensure_future(serving.poll(is_done))
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        if command["connector"] == "none":  # from now on there is nothing to do
            is_done.set()
            continue
        await serving.offer(command["connector"], command["blocks"])
    is_done.set()
    await polling


def say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


# --- the process that measures -------------------------------------------------------------------


class Other:
    """The serving process."""

    def __init__(self, names: Sequence[str], num_blocks: int, directory: str) -> None:
        command = [sys.executable, "-m", "benchmarks.transfer", "--serve"]
        command += [json.dumps([list(names), num_blocks, directory])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.described = self._answer()

    def offer(self, connector: str, blocks: list[int]) -> KVHandle:
        assert self._process.stdin is not None
        line = json.dumps({"connector": connector, "blocks": blocks})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return msgspec.convert(self._answer()["handle"], KVHandle)

    def rest(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write('{"connector": "none"}\n')
        self._process.stdin.flush()

    def cpu_s(self) -> float:
        """Processor time that it has taken so far."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print, too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the serving process has ended")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def memcpy_of(other: Other, region: KVRegion) -> Callable[[], None]:
    """One plain copy of everything out of the other process's memory."""
    peer: Any = ShmTransport(region).connect(
        bytes.fromhex(other.described["shm"]), region.num_blocks
    )
    target = region.blocks()

    def copy() -> None:
        target[:] = peer._source

    return copy


def bare_nixl_of(other: Other, region: KVRegion) -> Callable[[], None]:
    """One READ of all descriptors, polled without a pause."""
    transport = NixlTransport(region, f"bare-{uuid.uuid4().hex}", ("UCX",))
    peer = transport.connect(bytes.fromhex(other.described["nixl"]), region.num_blocks)
    assert isinstance(peer, NixlPeer)
    every = list(range(region.num_blocks))

    def read() -> None:
        agent = transport.agent
        transfer = agent.make_prepped_xfer("READ", transport.local, every, peer._remote, every)
        state = agent.transfer(transfer)
        while state == "PROC":
            state = agent.check_xfer_state(transfer)
        transfer.release()
        if state != "DONE":
            raise RuntimeError("the bare NIXL read failed")

    return read


class TimedPeer(Peer):
    """Adds up how long the copies themselves take."""

    def __init__(self, inner: Peer, seconds: list[float]) -> None:
        self._inner = inner
        self._seconds = seconds
        self.writes_through_gate = inner.writes_through_gate
        self.compares, self.only_copies = inner.compares, inner.only_copies

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        began = time.perf_counter()
        self._inner.read(remote, local, hashes, gate)
        self._seconds.append(time.perf_counter() - began)

    def close(self) -> None:
        self._inner.close()


class Measurement:
    def __init__(self, names: Sequence[str], num_blocks: int, directory: str) -> None:
        self.region = make_pool(num_blocks, seed=2)
        self.other = Other(names, num_blocks, directory)
        self.consumers: dict[str, KVConsumer] = {}
        self.copying: list[float] = []  # seconds of the copies of the fetch of now
        for name in names:
            info = identity("d")
            transport = make_transport(settings_of(name, directory), self.region, info)
            self._time_copies(transport)
            self.consumers[name] = KVConsumer(info, self.region, transport)
        self.every = list(range(num_blocks))

    def _time_copies(self, transport: Transport) -> None:
        connect = transport.connect

        def timed(description: bytes, num_blocks: int) -> Peer:
            return TimedPeer(connect(description, num_blocks), self.copying)

        setattr(transport, "connect", timed)  # noqa: B010 — of this one object

    async def fetch_s(self, name: str, blocks: list[int]) -> float:
        self.copying.clear()
        handle = await asyncio.to_thread(self.other.offer, name, blocks)
        deadline = time.monotonic() + TIMEOUT_S
        began = time.perf_counter()
        await self.consumers[name].fetch(handle, blocks, 0, deadline)
        return time.perf_counter() - began

    async def close(self) -> None:
        for consumer in self.consumers.values():
            await consumer.close()
        self.other.close()


async def measure(
    names: Sequence[str], num_blocks: int, rounds: int, directory: str
) -> dict[str, list[float]]:
    """Seconds by what was measured, one per round; "one block, …" for latencies;
    "copy, …" for the copies within a fetch, without what is said before and after."""
    measurement = Measurement(names, num_blocks, directory)
    plain = {"memcpy": memcpy_of(measurement.other, measurement.region)}
    if "nixl, no checksums" in names:
        plain["bare nixl"] = bare_nixl_of(measurement.other, measurement.region)
    found: dict[str, list[float]] = {}
    for i in range(-1, rounds):  # the first is for warming up
        seconds = {name: await asyncio.to_thread(_timed, run) for name, run in plain.items()}
        for name in names:
            seconds[name] = await measurement.fetch_s(name, measurement.every)
            seconds[f"copy, {name}"] = sum(measurement.copying)
            seconds[f"one block, {name}"] = await measurement.fetch_s(name, [3])
        if i >= 0:
            for name, value in seconds.items():
                found.setdefault(name, []).append(value)
    found["idle"] = await idle_shares(measurement.other)
    await measurement.close()
    return found


async def idle_shares(other: Other, rest_s: float = 5.0) -> list[float]:
    """Shares of a core that the two ends take when nothing is to be read: here, there."""
    other.rest()
    await asyncio.sleep(5.0)  # pollers linger
    before = time.process_time(), other.cpu_s()
    await asyncio.sleep(rest_s)
    after = time.process_time(), other.cpu_s()
    return [(later - earlier) / rest_s for earlier, later in zip(before, after, strict=True)]


def _timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def report(found: dict[str, list[float]], num_bytes: int) -> None:
    print(f"\n{'':26}{'GB/s':>8}{'ms':>9}{'one block ms':>14}   ratio (lowest - highest)")
    for name, seconds in found.items():
        if name == "idle" or name.startswith("one block"):
            continue
        median = statistics.median(seconds)
        latency = found.get(f"one block, {name}")
        shown = f"{1e3 * statistics.median(latency):14.2f}" if latency else f"{'':14}"
        print(
            f"{name:26}{num_bytes / median / 1e9:8.2f}{1e3 * median:9.1f}{shown}"
            f"   {_ratio(found, name)}"
        )
    here, there = found["idle"]
    print(
        f"\nidle, with all connectors open: consumer {100 * here:.1f} %, producer "
        f"{100 * there:.1f} % of a core"
    )


def _ratio(found: dict[str, list[float]], name: str) -> str:
    base = "bare nixl" if "nixl" in name else "memcpy"
    if name == base or base not in found:
        return ""
    ratios = [left / right for left, right in zip(found[base], found[name], strict=True)]
    return f"{statistics.median(ratios):.2f} of {base} ({min(ratios):.2f} - {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connectors", default=",".join(CONNECTORS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(*json.loads(options.serve)))
        return
    names = options.connectors.split(",")
    if not any(importlib.util.find_spec(package) for package in nixl.PACKAGES):
        names = [name for name in names if name != "nixl"]
    if "nixl" in names:
        names += CHECKSUMS
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(measure(names, options.megabytes, options.rounds, directory))
    report(found, options.megabytes * BLOCK_BYTES)


if __name__ == "__main__":
    main()
