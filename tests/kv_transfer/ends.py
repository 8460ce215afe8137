"""Stand-ins for the two engines of a hand-over: real memory and strict accounts of holds."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import mmap
import os
import time
import uuid
from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from kv_transfer.identity import KVIdentity
from kv_transfer.producer import KVProducer
from kv_transfer.region import KVRegion
from kv_transfer.transport import nixl

NEEDS_NIXL = pytest.mark.skipif(
    not any(importlib.util.find_spec(package) for package in nixl.PACKAGES),
    reason="none of the packages nixl, nixl-cu13, nixl-cu12 is installed",
)
FINGERPRINT = "model=demo,dtype=float32,block_size=16"


@dataclass(frozen=True)
class Filled:
    request_id: str
    first: int
    block_ids: list[int]
    epochs: list[int]
    hashes: list[str]
    is_last: bool


class Pool:
    """Blocks with known contents. Handing one back that is not held is an error at once."""

    def __init__(self, num_blocks=16, block_bytes=4096, seed=0, num_rows=1, block_size=16):
        fd = os.memfd_create("kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, num_blocks * block_bytes)
        memory = mmap.mmap(fd, num_blocks * block_bytes)
        self.blocks = np.frombuffer(memory, np.uint8).reshape(num_blocks, block_bytes)
        noise = np.random.default_rng(seed)
        self.blocks[:] = noise.integers(1, 256, self.blocks.shape, np.uint8)
        self.region = KVRegion(
            self.blocks.ctypes.data,
            num_blocks,
            block_bytes,
            fd,
            num_rows=num_rows,
            block_size=block_size,
        )
        self.epoch = [1] * num_blocks
        self.holds: Counter[int] = Counter()

    def free(self, block_ids):
        for block in block_ids:
            assert self.holds[block] > 0, f"block {block} was handed back twice"
            self.holds[block] -= 1

    def epochs(self, block_ids):
        return tuple(self.epoch[block] for block in block_ids)

    def new_owner(self, block):
        """The engine evicted the block and gave it to another sequence."""
        self.epoch[block] += 1
        self.blocks[block] ^= 0xFF

    def filled(self, request_id, first, block_ids, *, is_last=False):
        """What the engine reports after a step: a hold on each block has been taken."""
        self.holds.update(block_ids)
        hashes = [
            f"{block:02x}{self.blocks[block, :8].tobytes().hex():0>62}" for block in block_ids
        ]
        return Filled(request_id, first, block_ids, list(self.epochs(block_ids)), hashes, is_last)

    @property
    def num_held(self):
        return sum(self.holds.values())

    def close(self):
        assert self.region.fd is not None
        os.close(self.region.fd)


def identity(name, fingerprint=FINGERPRINT):
    return KVIdentity(name, f"{name}-{uuid.uuid4().hex}", fingerprint)


class Ends:
    """A producer and a consumer, joined by a real side channel."""

    def __init__(self, producer, consumer, source, target):
        self.producer = producer
        self.consumer = consumer
        self.source = source
        self.target = target

    def extend(self, request_id, first, block_ids, first_token=None):
        is_last = first_token is not None
        filled = self.source.filled(request_id, first, block_ids, is_last=is_last)
        self.producer.extend(filled, first_token)

    def via(self, handle, endpoint):
        """The handle as a producer would have signed it that is reached through a relay."""
        keys = self.producer.protocol.keys
        return keys.sign(msgspec.structs.replace(handle, side_channel=endpoint))

    def offer(self, request_id, block_ids, first_token=7):
        """An offer that is complete from the start."""
        handle = self.producer.offer(request_id, 16 * len(block_ids), len(block_ids))
        self.extend(request_id, 0, block_ids, first_token)
        return handle

    def fetch(self, handle, into, skip_blocks=0, timeout_s=5.0):
        return self.consumer.fetch(handle, into, skip_blocks, time.monotonic() + timeout_s)

    def assert_copied(self, source_ids, target_ids):
        assert np.array_equal(self.source.blocks[source_ids], self.target.blocks[target_ids])


@contextlib.asynccontextmanager
async def ends(
    connector="memory",
    *,
    lease_s=10.0,
    silence_s=3.0,
    num_blocks=16,
    block_bytes=4096,
    wrap=lambda transport: transport,
    on_landed=None,
    fingerprint=FINGERPRINT,
    key=None,
    **settings,
):
    """Checks that nothing is left held. `wrap` may put faults around a transport."""
    config = KVTransferConfig(connector, lease_s=lease_s, **settings)
    source, target = Pool(num_blocks, block_bytes, seed=1), Pool(num_blocks, block_bytes, seed=2)
    info = identity("p")
    producer = KVProducer(
        info,
        source.region,
        wrap(make_transport(config, source.region, info)),
        free=source.free,
        epochs=source.epochs,
        lease_s=lease_s,
        key=key,
    )
    await producer.start("tcp://127.0.0.1:0")
    info = identity("d", fingerprint=fingerprint)
    consumer = KVConsumer(
        info,
        target.region,
        wrap(make_transport(config, target.region, info)),
        silence_s=silence_s,
        on_landed=on_landed,
        key=key,
    )
    try:
        yield Ends(producer, consumer, source, target)
    finally:
        await consumer.close()
        await producer.close()
        source.close()
        target.close()
    assert source.num_held == 0
    assert producer.snapshot()["leases"] == producer.snapshot()["blocks_held"] == 0
    assert consumer.snapshot()["transfers_pending"] == 0


async def until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)
