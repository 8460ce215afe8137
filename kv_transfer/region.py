"""A pool of KV blocks as plain memory: where it starts, how many blocks, how large each.

Knows nothing of layers, heads or dtypes: a block is bytes, in rows of tokens. Whoever made the
memory keeps it alive for as long as a producer, consumer or transport uses the region.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kv_transfer.checksum import checksum

CHUNK_BYTES = 4 << 20  # the most that is copied in one go, so that a copy can be stopped quickly


@dataclass(frozen=True, slots=True)
class KVRegion:
    """Block i lies at `address + i * block_bytes`: [num_rows, block_size, token_bytes]."""

    address: int
    num_blocks: int
    block_bytes: int
    fd: int | None = None  # the memfd behind the memory, if there is one
    device: int | None = None  # number of the CUDA device the memory is on; None: host memory
    num_rows: int = 1  # a row per layer, K or V, and head
    block_size: int = 1  # tokens

    @property
    def size_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def token_bytes(self) -> int:
        """Of one token in one row."""
        return self.block_bytes // (self.num_rows * self.block_size)

    def blocks(self) -> NDArray[np.uint8]:
        """[num_blocks, block_bytes] view of the memory; it does not keep the memory alive. Only of
        host memory."""
        assert self.device is None, "the KV pool is on a GPU"
        memory = (ctypes.c_uint8 * self.size_bytes).from_address(self.address)
        return np.ctypeslib.as_array(memory).reshape(self.num_blocks, self.block_bytes)

    def checksums(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """Checksum of each block as it is now. Lets go of the GIL."""
        blocks = self.blocks()
        return tuple(checksum(blocks[block_id].data) for block_id in block_ids)


def runs(
    remote: Sequence[int], local: Sequence[int], max_blocks: int
) -> Iterator[tuple[int, int, int]]:
    """Neighbouring blocks on both sides as one: (remote block, local block, number of blocks)."""
    start = 0
    for i in range(1, len(remote) + 1):
        length = i - start
        is_neighbour = (
            i < len(remote)
            and length < max_blocks
            and remote[i] == remote[start] + length
            and local[i] == local[start] + length
        )
        if not is_neighbour:
            yield remote[start], local[start], length
            start = i
