"""Gated activation of the feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """[tokens, 2 * dim] → [tokens, dim]: silu(first half) * second half.

    Rounded to the dtype twice, after silu and after the product, as Hugging Face's models do.
    """
    return silu_mul_torch(gate_up)


def silu_mul_torch(gate_up: Tensor) -> Tensor:
    """Not `functional.silu`: what its vectors leave over goes through another exp."""
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.contiguous().float()
    return (wide / (torch.exp(-wide) + 1.0)).to(gate.dtype) * up
