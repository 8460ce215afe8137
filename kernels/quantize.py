"""Weights as whole numbers of 8 bits: one scale per output, so that rows stay one sum each.

Symmetric and to nearest, from the weight alone: nothing is calibrated. Knows nothing of how the
numbers are multiplied with.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Quantization = Literal["int8"]

_LARGEST = 127  # -128 is left out: a sign and seven bits hold every value
_CHUNK = 4096  # weight rows handled at a time, in float32


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight: [out, in] → (int8 [out, in], scales [out] float32); weight is about int8 * scale.

    A row that is not finite gets a scale that is not, so that it cannot pass for a weight.
    """
    numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for i in range(0, weight.shape[0], _CHUNK):
        rows = weight.detach()[i : i + _CHUNK].float()
        scale = rows.abs().amax(1) / _LARGEST
        scales[i : i + _CHUNK] = scale
        divisor = torch.where(scale == 0, 1.0, scale)[:, None]
        exact = (rows / divisor).round_().clamp_(-_LARGEST, _LARGEST)
        numbers[i : i + _CHUNK] = exact.nan_to_num_(0.0).to(torch.int8)
    return numbers, scales
