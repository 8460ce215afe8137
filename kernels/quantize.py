"""Weights in 8 bits, whole numbers or floats: one scale per output, so that rows stay one sum each.

Symmetric and to nearest, from the weight alone: nothing is calibrated. Knows nothing of how the
numbers are multiplied with.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Quantization = Literal["int8", "fp8"]

# What the numbers are, and the largest. -128 is left out: a sign and seven bits hold every value.
_KINDS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
_CHUNK = 4096  # weight rows handled at a time, in float32


def quantize(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
    """weight: [out, in] → (numbers [out, in], scales [out] float32); weight is about their product.

    A row that is not finite gets a scale that is not, so that it cannot pass for a weight.
    """
    dtype, largest = _KINDS[quantization]
    numbers = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for i in range(0, weight.shape[0], _CHUNK):
        rows = weight.detach()[i : i + _CHUNK].float()
        scale = rows.abs().amax(1) / largest
        scales[i : i + _CHUNK] = scale
        divisor = torch.where(scale == 0, 1.0, scale)[:, None]
        exact = rows / divisor
        if quantization == "int8":
            exact = exact.round_()
        exact = exact.clamp_(-largest, largest).nan_to_num_(0.0)
        numbers[i : i + _CHUNK] = exact.to(dtype)
    return numbers, scales
