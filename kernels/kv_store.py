"""Write this step's keys and values into the paged cache, which may keep them in eight bits."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.choice import triton_serves
from kernels.native_library import library_for

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest number it holds; what is beyond becomes that, not NaN


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """In place.

    k, v:              [tokens, kv_heads, head_dim]
    k_cache, v_cache:  [blocks, kv_heads, block_size, head_dim] of the same dtype or FP8, any
                       strides, last one contiguous
    slots:             [tokens] int64, block id * block_size + offset; -1 is padding and is skipped
    """
    if triton_serves(k, v, k_cache, v_cache):
        from kernels.gpu.rope import store_kv_triton

        store_kv_triton(k, v, k_cache, v_cache, slots)
        return
    native = library_for(k, v, k_cache, v_cache)
    if native is None or not k.dtype == v.dtype == k_cache.dtype == v_cache.dtype:
        store_kv_torch(k, v, k_cache, v_cache, slots)
        return
    slots = slots.contiguous()
    for rows, cache in ((k, k_cache), (v, v_cache)):
        rows = rows if rows.stride(2) == 1 else rows.contiguous()
        size = rows.element_size()
        native.xpyd_store_kv(
            rows.data_ptr(),
            *rows.shape[:2],
            rows.shape[2] * size,
            rows.stride(0) * size,
            rows.stride(1) * size,
            cache.data_ptr(),
            cache.stride(0) * size,
            cache.stride(1) * size,
            cache.stride(2) * size,
            cache.shape[2],
            slots.data_ptr(),
        )


def store_kv_torch(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    keep = slots >= 0
    block, offset = slots[keep] // k_cache.shape[2], slots[keep] % k_cache.shape[2]
    k_cache[block, :, offset] = narrowed(k[keep], k_cache.dtype)
    v_cache[block, :, offset] = narrowed(v[keep], v_cache.dtype)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as a cache of `dtype` keeps it."""
    return x.float().clamp(-FP8_MAX, FP8_MAX).to(dtype) if dtype == FP8 else x.to(dtype)
