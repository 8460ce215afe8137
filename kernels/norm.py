"""Root-mean-square normalisation, with the rounding points of Hugging Face's Llama."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., dim]; statistics in float32, result in x's dtype, then times weight [dim].

    The result is contiguous. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    return rms_norm_torch(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual), x + residual)`; the sum is rounded to x's dtype first."""
    total = x + residual
    return rms_norm_torch(total, weight, eps), total


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Contiguous first: over a strided view the mean would be summed in another order."""
    wide = x.contiguous().float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
