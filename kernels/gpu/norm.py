"""RMSNorm in Triton, alone or after adding the residual. Reference: kernels/norm.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    out_ptr,
    heads,
    stride_token,
    stride_head,
    dim,
    eps,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row. Rounded where Hugging Face's Llama rounds: after the sum, the norm, the weight."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    start = (row // heads) * stride_token + (row % heads) * stride_head
    x = tl.load(x_ptr + start + columns, mask=inside, other=0.0)
    dtype = x.dtype
    wide = x.to(tl.float32)
    if ADDS:
        residual = tl.load(residual_ptr + row * dim + columns, mask=inside, other=0.0)
        total = (wide + residual.to(tl.float32)).to(dtype)
        tl.store(total_ptr + row * dim + columns, total, mask=inside)
        wide = total.to(tl.float32)
    mean = tl.sum(wide * wide, axis=0) / dim
    normed = (wide * tl.rsqrt(mean + eps)).to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * dim + columns, (weight * normed).to(dtype), mask=inside)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., dim]; a view [tokens, heads, dim] is read where it lies. Contiguous result."""
    rows = x if x.dim() == 3 and x.stride(2) == 1 else x.reshape(-1, 1, x.shape[-1]).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, None, weight, None, out, eps)
    return out


def add_rms_norm_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual), x + residual)`."""
    rows = x.reshape(-1, 1, x.shape[-1]).contiguous()
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty_like(total)
    _launch(rows, residual.contiguous(), weight, total, out, eps)
    return out, total


def _launch(
    rows: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    total: Tensor | None,
    out: Tensor,
    eps: float,
) -> None:
    tokens, heads, dim = rows.shape
    if not tokens * heads:
        return
    block = triton.next_power_of_2(dim)
    _rms_norm[(tokens * heads,)](
        rows,
        residual,
        weight.contiguous(),
        total,
        out,
        heads,
        rows.stride(0),
        rows.stride(1),
        dim,
        eps,
        ADDS=residual is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )
