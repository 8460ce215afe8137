"""Write this step's keys and values into the paged cache."""

from __future__ import annotations

from torch import Tensor


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """In place.

    k, v:              [tokens, kv_heads, head_dim], dtype of the caches
    k_cache, v_cache:  [blocks, kv_heads, block_size, head_dim], any strides, last one contiguous
    slots:             [tokens] int64, block id * block_size + offset; -1 is padding and is skipped
    """
    store_kv_torch(k, v, k_cache, v_cache, slots)


def store_kv_torch(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    keep = slots >= 0
    block, offset = slots[keep] // k_cache.shape[2], slots[keep] % k_cache.shape[2]
    k_cache[block, :, offset] = k[keep]
    v_cache[block, :, offset] = v[keep]
