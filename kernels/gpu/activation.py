"""Gated activation in Triton. Reference: kernels/activation.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _silu_mul(x_ptr, out_ptr, stride, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < dim
    gate = tl.load(x_ptr + row * stride + columns, mask=inside, other=0.0)
    up = tl.load(x_ptr + row * stride + dim + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (tl.exp(-wide) + 1.0)).to(gate.dtype).to(tl.float32)
    out = (silu * up.to(tl.float32)).to(gate.dtype)
    tl.store(out_ptr + row * dim + columns, out, mask=inside)


def silu_mul_triton(gate_up: Tensor) -> Tensor:
    """[tokens, 2 * dim] → [tokens, dim]."""
    rows = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    tokens, dim = rows.shape[0], rows.shape[1] // 2
    out = torch.empty(tokens, dim, dtype=rows.dtype, device=rows.device)
    if tokens:
        grid = (tokens, triton.cdiv(dim, _BLOCK))
        _silu_mul[grid](rows, out, rows.stride(0), dim, BLOCK=_BLOCK, num_warps=4)
    return out
