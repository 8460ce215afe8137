"""Producer and consumer with blocks of different sizes: each token of each row where it belongs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from common.errors import CorruptBlock, LayoutMismatch
from kv_transfer import claim, reader
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from kv_transfer.producer import KVProducer
from kv_transfer.token_map import num_blocks
from tests.kv_transfer.ends import NEEDS_NIXL, Pool, identity, until
from tests.kv_transfer.faults import FlippingTransport

NUM_ROWS = 3
TOKEN_BYTES = 8
CONNECTORS = ["memory", "shm", "shared_storage", "nccl", pytest.param("nixl", marks=NEEDS_NIXL)]


class End:
    def __init__(self, name, block_size, config, seed):
        block_bytes = NUM_ROWS * block_size * TOKEN_BYTES
        self.pool = Pool(32, block_bytes, seed, NUM_ROWS, block_size)
        self.info = identity(name, f"model=demo,dtype=float32,block_size={block_size}")
        self.transport = make_transport(config, self.pool.region, self.info)
        self.block_size = block_size

    def tokens(self, block_ids):
        """[tokens, rows, bytes] in these blocks, in order."""
        by_token = self.pool.blocks.reshape(-1, NUM_ROWS, self.block_size, TOKEN_BYTES)
        return by_token[list(block_ids)].transpose(0, 2, 1, 3).reshape(-1, NUM_ROWS, TOKEN_BYTES)


class Unlike:
    def __init__(self, connector, sizes, tmp_path, *, staging=make_transport, **settings):
        storage: dict[str, Any] = (
            {"storage_dir": str(tmp_path)} if connector == "shared_storage" else {}
        )
        config = KVTransferConfig(connector, **storage, **settings)
        self.there, self.here = End("p", sizes[0], config, 1), End("d", sizes[1], config, 2)
        self.producer = KVProducer(
            self.there.info,
            self.there.pool.region,
            self.there.transport,
            free=self.there.pool.free,
            epochs=self.there.pool.epochs,
        )
        make = staging and (lambda region, theirs: staging(config, region, theirs))
        self.consumer = KVConsumer(
            self.here.info, self.here.pool.region, self.here.transport, staging=make
        )

    async def __aenter__(self):
        await self.producer.start("tcp://127.0.0.1:0")
        return self

    async def __aexit__(self, *_):
        await self.consumer.close()
        await self.producer.close()
        assert self.there.pool.num_held == 0
        self.there.pool.close()
        self.here.pool.close()

    def offer(self, num_tokens):
        return self.producer.offer("r", num_tokens, num_blocks(num_tokens, self.there.block_size))

    def extend(self, first, block_ids, first_token=None):
        is_last = first_token is not None
        filled = self.there.pool.filled("r", first, block_ids, is_last=is_last)
        self.producer.extend(filled, first_token)

    def fetch(self, handle, into, skip_blocks=0):
        return self.consumer.fetch(handle, into, skip_blocks, time.monotonic() + 20)


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("sizes", [(16, 32), (32, 16), (64, 16), (16, 48), (24, 16)])
def test_blocks_are_split_and_merged_by_tokens(connector, sizes, tmp_path):
    num_tokens = 150

    async def body():
        async with Unlike(connector, sizes, tmp_path) as both:
            theirs = [20 - i for i in range(num_blocks(num_tokens, sizes[0]))]
            ours = [3 + 2 * i for i in range(num_blocks(num_tokens, sizes[1]))]
            before = both.here.pool.blocks.copy()
            handle = both.offer(num_tokens)
            fetch = asyncio.ensure_future(both.fetch(handle, ours))
            both.extend(0, theirs[:2])  # a chunk that ends where no block of ours need end
            await until(lambda: both.consumer.snapshot()["bytes_read"], timeout_s=20)
            both.extend(2, theirs[2:], first_token=9)
            assert await fetch == 9
            found, sent = both.here.tokens(ours), both.there.tokens(theirs)
            assert np.array_equal(found[:num_tokens], sent[:num_tokens])
            others = [i for i in range(32) if i not in ours]
            assert (both.here.pool.blocks[others] == before[others]).all()

    asyncio.run(body())


@pytest.mark.parametrize("sizes", [(16, 32), (32, 16), (64, 16)])
def test_what_the_prefix_cache_has_is_left_alone(sizes, tmp_path):
    async def body():
        async with Unlike("shm", sizes, tmp_path) as both:
            theirs = list(range(num_blocks(100, sizes[0])))
            handle = both.offer(100)
            both.extend(0, theirs, first_token=4)
            skip = 1 if sizes[1] > 16 else 3
            ours = list(range(num_blocks(100, sizes[1]) - skip))
            assert await both.fetch(handle, ours, skip) == 4
            start = skip * sizes[1]
            found = both.here.tokens(ours)[: 100 - start]
            assert np.array_equal(found, both.there.tokens(theirs)[start:100])

    asyncio.run(body())


def test_more_blocks_than_the_landing_place_holds_come_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "STAGING_BYTES", 2 * NUM_ROWS * 16 * TOKEN_BYTES)

    async def body():
        async with Unlike("shm", (16, 32), tmp_path, checksum=True) as both:
            theirs = list(range(31, 1, -3))
            handle = both.offer(160)
            both.extend(0, theirs, first_token=4)
            assert await both.fetch(handle, [7, 1, 5, 0, 9]) == 4
            found = both.here.tokens([7, 1, 5, 0, 9])
            assert np.array_equal(found, both.there.tokens(theirs))

    asyncio.run(body())


def test_a_damaged_block_never_reaches_ours(tmp_path):
    def flipping(config, region, info):
        return FlippingTransport(region)

    async def body():
        async with Unlike("memory", (16, 32), tmp_path, staging=flipping, checksum=True) as both:
            handle = both.offer(64)
            both.extend(0, [1, 2, 3, 4], first_token=4)
            before = both.here.pool.blocks.copy()
            with pytest.raises(CorruptBlock, match="damaged"):
                await both.fetch(handle, [0, 1])
            assert (both.here.pool.blocks == before).all()
            assert both.consumer.snapshot()["retries"] == {"kv_corrupt_block": claim.MAX_RETRIES}

    asyncio.run(body())


def test_who_cannot_convert_refuses_by_name(tmp_path):
    async def body():
        async with Unlike("shm", (16, 32), tmp_path, staging=None) as both:
            handle = both.offer(64)
            both.extend(0, [1, 2, 3, 4], first_token=4)
            with pytest.raises(LayoutMismatch, match=r"block_size \(32, 16\)"):
                await both.fetch(handle, [0, 1])

    asyncio.run(body())
