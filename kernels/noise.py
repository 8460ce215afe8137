"""Sampling noise as a pure function of (seed, position, token id): no generator state anywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [rows, vocab_size] float32 for seeds and positions [rows] int64.

    Equal on every device and in every batch.
    """
    raise NotImplementedError
