"""Paged attention: queries of a packed batch over keys and values in the block cache.

One function for decode steps (one row per sequence) and prefill chunks. Keys are walked in tiles at
fixed absolute positions with an online softmax, so a query's result is the same bits alone, in any
chunk, beside any neighbours and through any block table. It knows nothing of requests or layers.
Source: PagedAttention, Kwon et al. 2023, arXiv:2309.06180;
FlashAttention-2, Dao 2023, arXiv:2307.08691.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.gpu.choice import triton_serves
from kernels.native_library import DTYPE_CODES, int64_array, library, library_for

_QUERIES = 16  # queries per tile of the torch face
_KEYS = 128  # keys per tile of the torch face


def paged_attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int | None = None,
    max_context_len: int | None = None,
) -> Tensor:
    """Causal attention of each sequence's new tokens over its whole context.

    query:             [tokens, heads, head_dim]
    k_cache, v_cache:  [blocks, kv_heads, block_size, head_dim] of the query's dtype or eight bits
                       (kernels/kv_store.py), any strides, last one contiguous
    block_tables:      [seqs, max blocks] int32
    cu_seqlens:        [seqs + 1] int32, rows of `query` per sequence
    context_lens:      [seqs] int32, cached tokens including the new ones
    window:            a query at p sees keys in (p - window, p]
    softcap:           scores become softcap * tanh(scores / softcap)
    max_query_len, max_context_len:  upper bounds, which spare a GPU the wait for the host to read
                       them from the tensors
    returns            [tokens, heads, head_dim], contiguous
    """
    if triton_serves(query, k_cache, v_cache):
        from kernels.gpu.attention import paged_attention_triton

        if max_query_len is None or max_context_len is None:
            max_query_len = int(cu_seqlens.diff().max())
            max_context_len = int(context_lens.max())
        return paged_attention_triton(
            query,
            k_cache,
            v_cache,
            block_tables,
            cu_seqlens,
            context_lens,
            scale,
            window,
            softcap,
            max_query_len,
            max_context_len,
        )
    face = _paged_attention_native if _is_native(query, k_cache, v_cache) else paged_attention_torch
    batch = (query, k_cache, v_cache, block_tables, cu_seqlens, context_lens)
    return face(*batch, scale, window, softcap)


def _is_native(query: Tensor, k_cache: Tensor, v_cache: Tensor) -> bool:
    """Depends on the model's shape alone, so one model never meets both faces."""
    is_alike = query.dtype == k_cache.dtype == v_cache.dtype and query.shape[2] % 2 == 0
    return is_alike and library_for(query, k_cache, v_cache) is not None


def _paged_attention_native(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    native = library()
    assert native is not None
    if query.stride(2) != 1:
        query = query.contiguous()
    _, kv_heads, block_size, head_dim = k_cache.shape
    tables = block_tables.to(torch.int32).contiguous()
    starts = cu_seqlens.to(torch.int32).contiguous()
    contexts = context_lens.to(torch.int32).contiguous()
    out = torch.empty(query.shape, dtype=query.dtype)
    native.xpyd_attention(
        DTYPE_CODES[query.dtype],
        query.data_ptr(),
        *query.stride()[:2],
        k_cache.data_ptr(),
        int64_array(*k_cache.stride()[:3]),
        v_cache.data_ptr(),
        int64_array(*v_cache.stride()[:3]),
        tables.data_ptr(),
        tables.stride(0),
        starts.data_ptr(),
        contexts.data_ptr(),
        int64_array(len(contexts), query.shape[1], kv_heads, head_dim, block_size),
        scale,
        window or 0,
        softcap or 0.0,
        out.data_ptr(),
    )
    return out


def paged_attention_torch(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same in plain torch, any device: every matrix product has one fixed shape."""
    out = query.new_empty(query.shape)
    starts = cu_seqlens.tolist()
    for i, context in enumerate(context_lens.tolist()):
        start, end = starts[i], starts[i + 1]
        tiles = [
            _QueryTile(query[s : min(s + _QUERIES, end)], context - end + s, k_cache.shape[1])
            for s in range(start, end, _QUERIES)
        ]
        oldest = 0 if window is None else max(0, context - (end - start) - window + 1)
        for first in range(oldest // _KEYS * _KEYS, context, _KEYS):
            positions = torch.arange(first, first + _KEYS, device=query.device)
            keys, values = _gather(k_cache, v_cache, block_tables[i], positions, context)
            for tile in tiles:
                tile.attend(keys, values, positions, scale, window, softcap)
        for s, tile in zip(range(start, end, _QUERIES), tiles, strict=True):
            out[s : min(s + _QUERIES, end)] = tile.result().to(query.dtype)
    return out


def _gather(
    k_cache: Tensor, v_cache: Tensor, table: Tensor, positions: Tensor, context: int
) -> tuple[Tensor, Tensor]:
    """Keys and values at `positions` as float32 [kv_heads, positions, head_dim padded to 16].

    Positions from `context` on were never written: zeros, as a NaN there would spread.
    """
    block_size = k_cache.shape[2]
    live = positions < context
    inside = torch.where(live, positions, 0)
    blocks, offsets = table[inside // block_size].long(), inside % block_size

    def take(cache: Tensor) -> Tensor:
        rows = cache[blocks, :, offsets].float().masked_fill(~live[:, None, None], 0.0)
        return functional.pad(rows.transpose(0, 1), (0, -rows.shape[2] % 16)).contiguous()

    return take(k_cache), take(v_cache)


class _QueryTile:
    """Up to `_QUERIES` neighbouring queries of one sequence and their running softmax."""

    def __init__(self, query: Tensor, first_position: int, kv_heads: int) -> None:
        self.count, self.heads, self.head_dim = query.shape
        group = self.heads // kv_heads
        padding = (0, -self.head_dim % 16, 0, 0, 0, _QUERIES - self.count)
        padded = functional.pad(query.float(), padding).view(_QUERIES, kv_heads, group, -1)
        self.query = padded.transpose(0, 1).reshape(kv_heads, _QUERIES * group, -1).contiguous()
        self.positions = torch.arange(_QUERIES, device=query.device) + first_position
        self.positions = self.positions.repeat_interleave(group)[:, None]
        rows = self.query.shape[:2]
        self.peak = torch.full((*rows, 1), -torch.inf, device=query.device)
        self.total = torch.zeros((*rows, 1), device=query.device)
        self.mixed = torch.zeros_like(self.query)

    def attend(
        self,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        """One more tile of keys: [kv_heads, _KEYS, head_dim] at `positions`."""
        seen = positions <= self.positions
        if window is not None:
            seen &= positions > self.positions - window
        scores = torch.matmul(self.query, keys.transpose(1, 2)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~seen, -torch.inf)
        peak = torch.maximum(self.peak, scores.amax(-1, keepdim=True))
        shift = peak.masked_fill(peak == -torch.inf, 0.0)  # nothing seen yet: keep NaN out
        weights, decay = torch.exp(scores - shift), torch.exp(self.peak - shift)
        total = self.total * decay + weights.sum(-1, keepdim=True)
        mixed = self.mixed * decay + torch.matmul(weights, values)
        # A tile that a query does not see must leave no trace, not even in the sign of a zero.
        touched = seen.any(-1, keepdim=True)
        self.total = torch.where(touched, total, self.total)
        self.mixed = torch.where(touched, mixed, self.mixed)
        self.peak = peak

    def result(self) -> Tensor:
        """[count, heads, head_dim] float32."""
        kv_heads = self.query.shape[0]
        mixed = (self.mixed / self.total).view(kv_heads, _QUERIES, self.heads // kv_heads, -1)
        rows = mixed.transpose(0, 1).reshape(_QUERIES, self.heads, -1)
        return rows[: self.count, :, : self.head_dim]
