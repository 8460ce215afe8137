"""Gated activation of the feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.choice import triton_serves
from kernels.native_library import DTYPE_CODES, library_for


def silu_mul(gate_up: Tensor) -> Tensor:
    """[tokens, 2 * dim] → [tokens, dim]: silu(first half) * second half.

    Rounded to the dtype twice, after silu and after the product, as Hugging Face's models do.
    """
    if triton_serves(gate_up):
        from kernels.gpu.activation import silu_mul_triton

        return silu_mul_triton(gate_up)
    native = library_for(gate_up)
    if native is None:
        return silu_mul_torch(gate_up)
    rows = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    count, dim = rows.shape[0], rows.shape[1] // 2
    out = torch.empty(count, dim, dtype=rows.dtype)
    code = DTYPE_CODES[rows.dtype]
    native.xpyd_silu_mul(code, rows.data_ptr(), count, rows.stride(0), dim, out.data_ptr())
    return out


def silu_mul_torch(gate_up: Tensor) -> Tensor:
    """Not `functional.silu`: what its vectors leave over goes through another exp."""
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.contiguous().float()
    return (wide / (torch.exp(-wide) + 1.0)).to(gate.dtype) * up
