"""Paged attention: queries of a packed batch over keys and values in the block cache."""

from __future__ import annotations

import torch
from torch import Tensor


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
) -> Tensor:
    """Causal attention of each sequence's new tokens over its whole context.

    query:             [tokens, heads, head_dim]
    k_cache, v_cache:  [blocks, kv_heads, block_size, head_dim], any strides, last one contiguous
    block_tables:      [seqs, max blocks] int32
    cu_seqlens:        [seqs + 1] int32, rows of `query` per sequence
    context_lens:      [seqs] int32, cached tokens including the new ones
    window:            a query at p sees keys in (p - window, p]
    returns            [tokens, heads, head_dim]
    """
    out = torch.empty_like(query)
    blocks, kv_heads, block_size, head_dim = k_cache.shape
    group = query.shape[1] // kv_heads
    for i, context in enumerate(context_lens.tolist()):
        start, end = int(cu_seqlens[i]), int(cu_seqlens[i + 1])
        table = block_tables[i, : -(-context // block_size)].long()
        keys = k_cache[table].transpose(1, 2).reshape(-1, kv_heads, head_dim)[:context].float()
        values = v_cache[table].transpose(1, 2).reshape(-1, kv_heads, head_dim)[:context].float()
        q = query[start:end].float().view(end - start, kv_heads, group, head_dim)
        scores = torch.einsum("qhgd,khd->hgqk", q, keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        q_pos = torch.arange(context - (end - start), context)[:, None]
        k_pos = torch.arange(context)[None, :]
        seen = k_pos <= q_pos
        if window is not None:
            seen &= k_pos > q_pos - window
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        mixed = torch.einsum("hgqk,khd->qhgd", weights, values)
        out[start:end] = mixed.reshape(end - start, -1, head_dim).to(query.dtype)
    return out
