"""Root-mean-square normalisation, with the rounding points of Hugging Face's Llama."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.choice import triton_serves
from kernels.native_library import DTYPE_CODES, library_for


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., dim]; statistics in float32, result in x's dtype, then times weight [dim].

    The result is contiguous. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if triton_serves(x, weight):
        from kernels.gpu.norm import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    native = library_for(x) if x.dtype == weight.dtype else None
    if native is None:
        return rms_norm_torch(x, weight, eps)
    rows = x if x.dim() == 3 and x.stride(2) == 1 else x.reshape(-1, 1, x.shape[-1]).contiguous()
    weight = weight.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    native.xpyd_rms_norm(
        DTYPE_CODES[x.dtype],
        rows.data_ptr(),
        *rows.shape[:2],
        *rows.stride()[:2],
        rows.shape[2],
        weight.data_ptr(),
        eps,
        out.data_ptr(),
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual), x + residual)`; the sum is rounded to x's dtype first."""
    if triton_serves(x, residual, weight):
        from kernels.gpu.norm import add_rms_norm_triton

        return add_rms_norm_triton(x, residual, weight, eps)
    native = library_for(x) if x.dtype == residual.dtype == weight.dtype else None
    if native is None:
        total = x + residual
        return rms_norm_torch(total, weight, eps), total
    x, residual, weight = x.contiguous(), residual.contiguous(), weight.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    native.xpyd_add_rms_norm(
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        residual.data_ptr(),
        x.numel() // x.shape[-1],
        x.shape[-1],
        weight.data_ptr(),
        eps,
        total.data_ptr(),
        out.data_ptr(),
    )
    return out, total


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Contiguous first: over a strided view the mean would be summed in another order."""
    wide = x.contiguous().float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
