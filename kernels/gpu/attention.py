"""Paged attention on a GPU: which kernel, in what shape. Reference: kernels/attention.py.

Nothing here waits for the GPU, so lengths are upper bounds known on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.gpu.attention_kernels import combine_kernel, decode_kernel, prefill_kernel
from kernels.gpu.choice import is_batch_invariant
from kernels.gpu.tuning import Case, Tuner, bucket, chosen

SPLIT = 256  # keys: spans are multiples of it


@dataclass(frozen=True, slots=True)
class Tile:
    """How a kernel is compiled. rows: query rows per program, head group and tokens together."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


PREFILL = Tile(rows=128, keys=64, num_warps=8, num_stages=3)
DECODE = Tile(rows=16, keys=64, num_warps=4, num_stages=3)
# One shape for both, so that a token has the same bits from either; it is never tuned.
INVARIANT = Tile(rows=64, keys=64, num_warps=4, num_stages=3)
PREFILL_TILES = (
    PREFILL,
    Tile(rows=128, keys=128, num_warps=8, num_stages=2),
    Tile(rows=128, keys=64, num_warps=4, num_stages=3),
    Tile(rows=64, keys=64, num_warps=4, num_stages=3),
    Tile(rows=64, keys=128, num_warps=4, num_stages=2),
)
DECODE_TILES = (
    DECODE,
    Tile(rows=16, keys=32, num_warps=2, num_stages=4),
    Tile(rows=16, keys=64, num_warps=2, num_stages=4),
    Tile(rows=16, keys=128, num_warps=4, num_stages=2),
    Tile(rows=16, keys=128, num_warps=8, num_stages=3),
)


def paged_attention_triton(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    max_query_len: int,
    max_context_len: int,
) -> Tensor:
    """See kernels/attention.py. The two lengths may be upper bounds; nothing waits for the GPU."""
    assert k_cache.stride() == v_cache.stride(), "the two caches are halves of one tensor"
    batch = _Batch(
        query if query.stride(2) == 1 else query.contiguous(),
        k_cache,
        v_cache,
        block_tables,
        cu_seqlens,
        context_lens,
        torch.empty(query.shape, dtype=query.dtype, device=query.device),
        scale,
        window or 0,
        softcap or 0.0,
    )
    if not len(context_lens):
        return batch.out
    is_invariant = is_batch_invariant()
    if max_query_len > 1 or len(query) > len(context_lens):
        tile = INVARIANT if is_invariant else chosen("prefill", batch.case, PREFILL)
        _launch_prefill(batch, tile, is_invariant)
    if not is_invariant or max_query_len == 1:
        tile = INVARIANT if is_invariant else chosen("decode", batch.decode_case, DECODE)
        _launch_decode(batch, tile, max_context_len, is_invariant)
    return batch.out


def tune_attention(
    tuner: Tuner,
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    window: int | None,
    max_query_len: int,
    max_context_len: int,
) -> None:
    """Choose the tiles for batches like this one: all decodes, or prefill chunks."""
    batch = _Batch(
        query,
        k_cache,
        v_cache,
        block_tables,
        cu_seqlens,
        context_lens,
        torch.empty_like(query),
        query.shape[2] ** -0.5,
        window or 0,
        0.0,
    )
    if max_query_len > 1:
        tuner.tune(
            "prefill", batch.case, PREFILL_TILES, lambda tile: _launch_prefill(batch, tile, False)
        )
    else:
        tuner.tune(
            "decode",
            batch.decode_case,
            DECODE_TILES,
            lambda tile: _launch_decode(batch, tile, max_context_len, False),
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    query: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    cu_seqlens: Tensor
    context_lens: Tensor
    out: Tensor
    scale: float
    window: int
    softcap: float

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.k_cache.shape[1]

    @property
    def case(self) -> Case:
        """What the best tile depends on."""
        _, _, block_size, dim = self.k_cache.shape
        dtypes = f"{self.query.dtype} {self.k_cache.dtype}"
        return (dtypes, self.group, dim, block_size, int(self.window > 0))

    @property
    def decode_case(self) -> Case:
        return (*self.case, self.k_cache.shape[1], bucket(len(self.context_lens)))

    def constants(self, tile: Tile) -> dict[str, Any]:
        dim = self.query.shape[2]
        return {
            "GROUP": self.group,
            "KEYS": tile.keys,
            "SPLIT_KEYS": SPLIT,
            "BLOCK_SIZE": self.k_cache.shape[2],
            "DIM": dim,
            "DIM_PADDED": max(16, triton.next_power_of_2(dim)),
            "WINDOW": self.window,
            "HAS_SOFTCAP": self.softcap != 0.0,
            "PRECISION": "ieee" if self.query.dtype == torch.float32 else "tf32",
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        }


def _launch_prefill(batch: _Batch, tile: Tile, is_invariant: bool) -> Tensor:
    rows = max(tile.rows, triton.next_power_of_2(batch.group))
    tokens = rows // batch.group
    num_seqs = len(batch.context_lens)
    num_tiles = len(batch.query) // tokens + num_seqs
    prefill_kernel[(num_tiles, batch.k_cache.shape[1])](
        batch.query,
        batch.k_cache,
        batch.v_cache,
        batch.out,
        batch.block_tables,
        batch.cu_seqlens,
        batch.context_lens,
        num_seqs,
        num_tiles,
        batch.scale,
        batch.softcap,
        batch.block_tables.stride(0),
        *batch.query.stride()[:2],
        *batch.out.stride()[:2],
        *batch.k_cache.stride()[:3],
        TOKENS=tokens,
        ROWS=rows,
        IS_INVARIANT=is_invariant,
        **batch.constants(tile),
    )
    return batch.out


def _launch_decode(batch: _Batch, tile: Tile, max_context_len: int, is_invariant: bool) -> Tensor:
    num_seqs, num_heads, kv_heads = (
        len(batch.context_lens),
        batch.query.shape[1],
        batch.k_cache.shape[1],
    )
    constants = batch.constants(tile)
    rows = max(tile.rows, triton.next_power_of_2(batch.group))
    programs = triton.cdiv(max_context_len, SPLIT)
    if not is_invariant:
        programs = min(programs, triton.cdiv(_enough_programs(batch.query), num_seqs * kv_heads))
    padded = constants["DIM_PADDED"]
    shape = (num_seqs, num_heads, programs, 2 + padded)
    parts = torch.empty(shape, dtype=torch.float32, device=batch.query.device)
    decode_kernel[(num_seqs, kv_heads, programs)](
        batch.query,
        batch.k_cache,
        batch.v_cache,
        parts,
        batch.block_tables,
        batch.cu_seqlens,
        batch.context_lens,
        batch.scale,
        batch.softcap,
        batch.block_tables.stride(0),
        *batch.query.stride()[:2],
        *batch.k_cache.stride()[:3],
        num_heads,
        programs,
        ROWS=rows,
        IS_INVARIANT=is_invariant,
        **constants,
    )
    combine_kernel[(num_seqs, num_heads)](
        parts,
        batch.out,
        batch.cu_seqlens,
        batch.context_lens,
        *batch.out.stride()[:2],
        num_heads,
        programs,
        SPLIT_KEYS=SPLIT,
        DIM=constants["DIM"],
        DIM_PADDED=padded,
        WINDOW=batch.window,
        IS_INVARIANT=is_invariant,
        num_warps=1,
    )
    return batch.out


def _enough_programs(query: Tensor) -> int:
    """Enough to keep every multiprocessor busy, several times over."""
    if not query.is_cuda:
        return 8  # under the interpreter
    return 8 * torch.cuda.get_device_properties(query.device).multi_processor_count
