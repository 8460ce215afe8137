"""Rotary position embedding (half-split pairs, as in Hugging Face's Llama), alone or with the
write of keys and values into the paged cache that always follows it."""

from __future__ import annotations

from torch import Tensor

from kernels.gpu.choice import triton_serves
from kernels.kv_store import store_kv
from kernels.native_library import DTYPE_CODES, library_for


def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Rotate q and k in place.

    Cosine, sine and each product are rounded to q's dtype, as Hugging Face rounds them.

    q, k:      [tokens, heads, head_dim]; only the first `2 * cos.shape[1]` of head_dim turn
    cos, sin:  [max positions, rotary dim / 2] float32
    positions: [tokens] int64
    Source: RoFormer, Su et al. 2021, arXiv:2104.09864.
    """
    if triton_serves(q, k):
        from kernels.gpu.rope import apply_rope_triton

        apply_rope_triton(q, k, cos, sin, positions)
        return
    native = library_for(q, k)
    if native is None or q.dtype != k.dtype or q.stride(2) != 1 or k.stride(2) != 1:
        apply_rope_torch(q, k, cos, sin, positions)
        return
    cos, sin, positions = cos.contiguous(), sin.contiguous(), positions.contiguous()
    tables = (cos.data_ptr(), sin.data_ptr(), cos.shape[1], positions.data_ptr())
    for x in (q, k):
        shape = (*x.shape[:2], *x.stride()[:2])
        native.xpyd_rope(DTYPE_CODES[x.dtype], x.data_ptr(), *shape, *tables)


def rope_and_store(
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
    """`apply_rope`, then `store_kv` (kernels/kv_store.py); what k holds afterwards is undefined."""
    if triton_serves(q, k, v, k_cache, v_cache):
        from kernels.gpu.rope import rope_and_store_triton

        rope_and_store_triton(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
        return
    apply_rope(q, k, cos, sin, positions)
    store_kv(k, v, k_cache, v_cache, slots)


def apply_rope_torch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    c, s = cos[positions][:, None, :].to(q.dtype), sin[positions][:, None, :].to(q.dtype)
    half = cos.shape[1]
    for x in (q, k):
        first, second = x[..., :half].clone(), x[..., half : 2 * half].clone()
        x[..., :half] = first * c - second * s
        x[..., half : 2 * half] = second * c + first * s
