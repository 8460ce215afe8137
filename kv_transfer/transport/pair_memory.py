"""Blocks into one run of bytes and back: what lies between a KV pool and a process group.

A group writes only into memory that belongs to its pair, never into a pool's blocks: whatever
arrives late, or for nobody, lands where it harms no one. Knows no peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kv_transfer.region import KVRegion


class PairMemory(Protocol):
    """A pool, and staging memory beside it. Used by the one thread of its pair."""

    device: torch.device

    def staging(self, num_blocks: int) -> Tensor:
        """[num_blocks, block_bytes] uint8, new."""
        ...

    def gather(self, block_ids: Sequence[int], staging: Tensor) -> None:
        """Copy these blocks into the first rows of `staging`; done when it returns."""
        ...

    def scatter(self, staging: Tensor, block_ids: Sequence[int]) -> None:
        """The other way round."""
        ...


class HostMemory:
    device = torch.device("cpu")

    def __init__(self, region: KVRegion) -> None:
        self._blocks = region.blocks()

    def staging(self, num_blocks: int) -> Tensor:
        return torch.empty((num_blocks, self._blocks.shape[1]), dtype=torch.uint8)

    def gather(self, block_ids: Sequence[int], staging: Tensor) -> None:
        rows = staging.numpy()  # one thread, without the GIL: the cores belong to the engine
        for row, block_id in enumerate(block_ids):
            rows[row] = self._blocks[block_id]

    def scatter(self, staging: Tensor, block_ids: Sequence[int]) -> None:
        rows = staging.numpy()
        for row, block_id in enumerate(block_ids):
            self._blocks[block_id] = rows[row]


class CudaMemory:
    """Copies run on the stream that is current in the pair's thread, which is the pair's own."""

    def __init__(self, region: KVRegion) -> None:
        assert region.device is not None
        self.device = torch.device("cuda", region.device)
        self._blocks = torch.as_tensor(_CudaArray(region), device=self.device)

    def staging(self, num_blocks: int) -> Tensor:
        shape = (num_blocks, self._blocks.shape[1])
        return torch.empty(shape, dtype=torch.uint8, device=self.device)

    def gather(self, block_ids: Sequence[int], staging: Tensor) -> None:
        rows = torch.tensor(block_ids, device=self.device)
        torch.index_select(self._blocks, 0, rows, out=staging[: len(block_ids)])
        torch.cuda.current_stream(self.device).synchronize()

    def scatter(self, staging: Tensor, block_ids: Sequence[int]) -> None:
        rows = torch.tensor(block_ids, device=self.device)
        self._blocks.index_copy_(0, rows, staging[: len(block_ids)])
        torch.cuda.current_stream(self.device).synchronize()


class _CudaArray:
    """Device memory that somebody else owns, as torch takes it without a copy."""

    def __init__(self, region: KVRegion) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (region.num_blocks, region.block_bytes),
            "typestr": "|u1",
            "data": (region.address, False),
            "version": 3,
        }


def pair_memory(region: KVRegion) -> PairMemory:
    return HostMemory(region) if region.device is None else CudaMemory(region)
