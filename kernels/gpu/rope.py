"""Rotary positions and the write into the paged cache, in one pass over a token's heads.

References: kernels/rope.py and kernels/kv_store.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _narrowed(x, dtype: tl.constexpr):
    """x as the cache keeps it: where eight bits hold no number so large, the largest they hold."""
    if x.dtype != dtype:
        x = tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)
    return x.to(dtype)


@triton.jit
def _turn(x_ptr, stride_head, cos, sin, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Both halves of each head's rotary part, rotated: [HEADS, HALF] each, and their mask.

    A thread reads and later writes the same pairs, so this may be stored in place.
    """
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    mask = (head < heads) & (column < half)
    at = x_ptr + head * stride_head + column
    first = tl.load(at, mask=mask, other=0.0)
    second = tl.load(at + half, mask=mask, other=0.0)
    dtype = first.dtype
    c = cos.to(dtype).to(tl.float32)[None, :]
    s = sin.to(dtype).to(tl.float32)[None, :]
    one, two = first.to(tl.float32), second.to(tl.float32)
    # Each product is rounded to the dtype before the sum, as in plain torch.
    left = (one * c).to(dtype).to(tl.float32) - (two * s).to(dtype).to(tl.float32)
    right = (two * c).to(dtype).to(tl.float32) + (one * s).to(dtype).to(tl.float32)
    return left.to(dtype), right.to(dtype), at, mask


@triton.jit
def _turn_in_place(
    x_ptr, stride_head, cos, sin, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr
):
    left, right, at, mask = _turn(x_ptr, stride_head, cos, sin, heads, half, HEADS, HALF)
    tl.store(at, left, mask=mask)
    tl.store(at + half, right, mask=mask)


@triton.jit
def _rope(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    q_heads,
    k_heads,
    half,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    column = tl.arange(0, HALF)
    inside = column < half
    cos = tl.load(cos_ptr + position * half + column, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + position * half + column, mask=inside, other=0.0)
    _turn_in_place(q_ptr + token * q_token, q_head, cos, sin, q_heads, half, Q_HEADS, HALF)
    _turn_in_place(k_ptr + token * k_token, k_head, cos, sin, k_heads, half, K_HEADS, HALF)


@triton.jit
def _copy_heads(
    x_ptr,
    x_head,
    cache_ptr,
    cache_head,
    heads,
    first,
    dim,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Columns [first, dim) of each head, not turned."""
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, DIM)[None, :]
    mask = (head < heads) & (column >= first) & (column < dim)
    values = tl.load(x_ptr + head * x_head + column, mask=mask, other=0.0)
    kept = _narrowed(values, cache_ptr.dtype.element_ty)
    tl.store(cache_ptr + head * cache_head + column, kept, mask=mask)


@triton.jit
def _rope_store(
    q_ptr,
    k_ptr,
    v_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    cache_block,
    cache_head,
    cache_slot,
    q_heads,
    kv_heads,
    half,
    dim,
    block_size,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
):
    """Both caches are views of one tensor, so they share their strides."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    column = tl.arange(0, HALF)
    inside = column < half
    cos = tl.load(cos_ptr + position * half + column, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + position * half + column, mask=inside, other=0.0)
    _turn_in_place(q_ptr + token * q_token, q_head, cos, sin, q_heads, half, Q_HEADS, HALF)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot >= 0:
        k_row, v_row = k_ptr + token * k_token, v_ptr + token * v_token
        place = (slot // block_size) * cache_block + (slot % block_size) * cache_slot
        left, right, _, mask = _turn(k_row, k_head, cos, sin, kv_heads, half, KV_HEADS, HALF)
        head = tl.arange(0, KV_HEADS)[:, None]
        to = k_cache_ptr + place + head * cache_head + column[None, :]
        tl.store(to, _narrowed(left, k_cache_ptr.dtype.element_ty), mask=mask)
        tl.store(to + half, _narrowed(right, k_cache_ptr.dtype.element_ty), mask=mask)
        _copy_heads(
            k_row, k_head, k_cache_ptr + place, cache_head, kv_heads, 2 * half, dim, KV_HEADS, DIM
        )
        _copy_heads(v_row, v_head, v_cache_ptr + place, cache_head, kv_heads, 0, dim, KV_HEADS, DIM)


@triton.jit
def _store_kv(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    k_token,
    k_head,
    v_token,
    v_head,
    cache_block,
    cache_head,
    cache_slot,
    kv_heads,
    dim,
    block_size,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot >= 0:
        k_row, v_row = k_ptr + token * k_token, v_ptr + token * v_token
        place = (slot // block_size) * cache_block + (slot % block_size) * cache_slot
        _copy_heads(k_row, k_head, k_cache_ptr + place, cache_head, kv_heads, 0, dim, KV_HEADS, DIM)
        _copy_heads(v_row, v_head, v_cache_ptr + place, cache_head, kv_heads, 0, dim, KV_HEADS, DIM)


def apply_rope_triton(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """In place; see kernels/rope.py."""
    half = cos.shape[1]
    if len(positions):
        _rope[(len(positions),)](
            q,
            k,
            cos,
            sin,
            positions,
            *q.stride()[:2],
            *k.stride()[:2],
            q.shape[1],
            k.shape[1],
            half,
            Q_HEADS=triton.next_power_of_2(q.shape[1]),
            K_HEADS=triton.next_power_of_2(k.shape[1]),
            HALF=triton.next_power_of_2(half),
            num_warps=4,
        )


def rope_and_store_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> None:
    """See kernels/rope.py; k is left as it was."""
    assert k_cache.stride() == v_cache.stride(), "the two caches are halves of one tensor"
    half = cos.shape[1]
    if len(positions):
        _rope_store[(len(positions),)](
            q,
            k,
            v,
            cos,
            sin,
            positions,
            k_cache,
            v_cache,
            slots,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            *k_cache.stride()[:3],
            q.shape[1],
            k.shape[1],
            half,
            k.shape[2],
            k_cache.shape[2],
            Q_HEADS=triton.next_power_of_2(q.shape[1]),
            KV_HEADS=triton.next_power_of_2(k.shape[1]),
            HALF=triton.next_power_of_2(half),
            DIM=triton.next_power_of_2(k.shape[2]),
            num_warps=4,
        )


def store_kv_triton(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """See kernels/kv_store.py."""
    assert k_cache.stride() == v_cache.stride(), "the two caches are halves of one tensor"
    if len(slots):
        _store_kv[(len(slots),)](
            k,
            v,
            k_cache,
            v_cache,
            slots,
            *k.stride()[:2],
            *v.stride()[:2],
            *k_cache.stride()[:3],
            k.shape[1],
            k.shape[2],
            k_cache.shape[2],
            KV_HEADS=triton.next_power_of_2(k.shape[1]),
            DIM=triton.next_power_of_2(k.shape[2]),
            num_warps=2,
        )
