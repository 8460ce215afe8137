"""Matrix product with weights: `linear` over a weight packed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedWeight:
    weight: Tensor
    bias: Tensor | None


def pack(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    return PackedWeight(weight, bias)


def linear(x: Tensor, packed: PackedWeight, out_dtype: torch.dtype | None = None) -> Tensor:
    out = torch.nn.functional.linear(x, packed.weight, packed.bias)
    return out.to(out_dtype or x.dtype)
