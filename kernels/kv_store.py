"""Write this step's keys and values into the paged cache."""

from __future__ import annotations

from torch import Tensor

from kernels.gpu.choice import triton_serves
from kernels.native_library import library_for


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """In place.

    k, v:              [tokens, kv_heads, head_dim], dtype of the caches
    k_cache, v_cache:  [blocks, kv_heads, block_size, head_dim], any strides, last one contiguous
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
    k_cache[block, :, offset] = k[keep]
    v_cache[block, :, offset] = v[keep]
