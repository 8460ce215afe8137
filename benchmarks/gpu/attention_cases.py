"""Batches of queries over a paged cache, as the engine would make them, with random contents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.kv_store import FP8, narrowed


class AttentionBatch(NamedTuple):
    """The tensors that `kernels.attention.paged_attention` takes first."""

    query: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    cu_seqlens: Tensor
    context_lens: Tensor


@dataclass(frozen=True, slots=True)
class AttentionCase:
    lens: tuple[int, ...]  # queries per sequence
    contexts: tuple[int, ...]  # cached tokens per sequence, the queries included
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 32
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    softcap: float | None = None
    is_fp8: bool = False  # the cache in eight bits

    @property
    def kv_bytes(self) -> int:
        """Keys and values that one layer has to read, once each."""
        return 2 * sum(self.contexts) * self.kv_heads * self.head_dim * self.cache_dtype.itemsize

    @property
    def cache_dtype(self) -> torch.dtype:
        return FP8 if self.is_fp8 else self.dtype

    @property
    def flop(self) -> int:
        """Two products of two operations for each (query, key) pair that is seen."""
        pairs = sum(
            n * context - n * (n - 1) // 2
            for n, context in zip(self.lens, self.contexts, strict=True)
        )
        return 4 * pairs * self.heads * self.head_dim

    def batch(self, device: str, seed: int = 0) -> AttentionBatch:
        """One layer of four, in random blocks."""
        generator = torch.Generator(device).manual_seed(seed)
        counts = [-(-context // self.block_size) for context in self.contexts]
        num_blocks = sum(counts) + 1
        shape = (num_blocks, 4, 2, self.kv_heads, self.block_size, self.head_dim)
        cache = torch.randn(shape, generator=generator, device=device, dtype=self.dtype)
        cache = narrowed(cache, self.cache_dtype)
        order = torch.randperm(num_blocks, generator=generator, device=device).to(torch.int32)
        tables = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
        at = 0
        for row, count in enumerate(counts):
            tables[row, :count] = order[at : at + count]
            at += count
        query = torch.randn(
            (sum(self.lens), self.heads, self.head_dim),
            generator=generator,
            device=device,
            dtype=self.dtype,
        )
        starts = torch.tensor([0, *self.lens], device=device).cumsum(0).to(torch.int32)
        contexts = torch.tensor(self.contexts, dtype=torch.int32, device=device)
        return AttentionBatch(query, cache[:, 1, 0], cache[:, 1, 1], tables, starts, contexts)


def exact_attention(case: AttentionCase, batch: AttentionBatch) -> Tensor:
    """In float32 by plain products over each sequence's keys, gathered."""
    query, k_cache, v_cache, tables, _, _ = batch
    parts, at = [], 0
    for row, (count, context) in enumerate(zip(case.lens, case.contexts, strict=True)):
        blocks = tables[row, : -(-context // case.block_size)].long()
        group = case.heads // case.kv_heads
        keys, values = (
            cache[blocks].transpose(0, 1).flatten(1, 2)[:, :context].float()
            for cache in (k_cache, v_cache)
        )
        keys, values = (t.repeat_interleave(group, 0) for t in (keys, values))
        q = query[at : at + count].float().transpose(0, 1)
        scores = q @ keys.transpose(1, 2) * case.head_dim**-0.5
        if case.softcap is not None:
            scores = torch.tanh(scores / case.softcap) * case.softcap
        positions = torch.arange(context, device=query.device)
        distance = positions[context - count :, None] - positions[None, :]
        hidden = distance < 0
        if case.window is not None:
            hidden |= distance >= case.window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        parts.append((weights @ values).transpose(0, 1))
        at += count
    return torch.cat(parts)
