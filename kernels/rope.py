"""Rotary position embedding (half-split pairs, as in Hugging Face's Llama)."""

from __future__ import annotations

from torch import Tensor

from kernels.native_library import DTYPE_CODES, library_for


def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Rotate q and k in place.

    Cosine, sine and each product are rounded to q's dtype, as Hugging Face rounds them.

    q, k:      [tokens, heads, head_dim]; only the first `2 * cos.shape[1]` of head_dim turn
    cos, sin:  [max positions, rotary dim / 2] float32
    positions: [tokens] int64
    Source: RoFormer, Su et al. 2021, arXiv:2104.09864.
    """
    native = library_for(q, k)
    if native is None or q.dtype != k.dtype or q.stride(2) != 1 or k.stride(2) != 1:
        apply_rope_torch(q, k, cos, sin, positions)
        return
    cos, sin, positions = cos.contiguous(), sin.contiguous(), positions.contiguous()
    tables = (cos.data_ptr(), sin.data_ptr(), cos.shape[1], positions.data_ptr())
    for x in (q, k):
        shape = (*x.shape[:2], *x.stride()[:2])
        native.xpyd_rope(DTYPE_CODES[x.dtype], x.data_ptr(), *shape, *tables)


def apply_rope_torch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    c, s = cos[positions][:, None, :].to(q.dtype), sin[positions][:, None, :].to(q.dtype)
    half = cos.shape[1]
    for x in (q, k):
        first, second = x[..., :half].clone(), x[..., half : 2 * half].clone()
        x[..., :half] = first * c - second * s
        x[..., half : 2 * half] = second * c + first * s
