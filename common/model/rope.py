"""Cosine and sine tables for `kernels.rope.apply_rope`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.model.rope_spec import RopeSpec


def rope_tables(
    rope: RopeSpec, head_dim: int, max_len: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos, sin: [max_len, head_dim / 2] float32, computed on the CPU so that all devices agree."""
    positions = torch.arange(max_len, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
    cos = angles.cos() * rope.attention_factor
    sin = angles.sin() * rope.attention_factor
    return cos.to(device), sin.to(device)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions: [head_dim / 2] float32."""
    pair = torch.arange(0, head_dim, 2, dtype=torch.int64).float()
    frequencies = 1.0 / (rope.base ** (pair / head_dim))
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "llama3":
        return _llama3(rope, frequencies)
    if rope.scaling == "yarn":
        return _yarn(rope, frequencies, head_dim)
    return frequencies


def _llama3(rope: RopeSpec, frequencies: Tensor) -> Tensor:
    """Slow dimensions stretched by `factor`, fast ones kept, a linear blend between.

    Source: Llama 3.1's published configuration (rope_type llama3).
    """
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = rope.original_max_len * frequencies / (2 * math.pi)  # in the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies / rope.factor * (1 - keep) + frequencies * keep


def _yarn(rope: RopeSpec, frequencies: Tensor, head_dim: int) -> Tensor:
    """As `_llama3`, but the blend runs over dimensions.

    Source: YaRN, Peng et al. 2023, arXiv:2309.00071, section 3.2.
    """

    def dimension_with(turns: float) -> float:
        wavelength = rope.original_max_len / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.base))

    low, high = dimension_with(rope.beta_fast), dimension_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    stretch = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / rope.factor * stretch + frequencies * (1 - stretch)
