"""What the sampler does per row of float32 logits; a row's result does not depend on the others."""

from __future__ import annotations

import torch
from torch import Tensor


def argmax(logits: Tensor) -> Tensor:
    """logits: [rows, vocab] float32 → [rows] int64; the lowest id wins a tie, a NaN beats all."""
    return argmax_torch(logits)


def log_softmax(logits: Tensor) -> Tensor:
    """logits: [rows, vocab] float32 → the same shape, float32; -inf stays -inf."""
    return log_softmax_torch(logits)


def argmax_torch(logits: Tensor) -> Tensor:
    return torch.argmax(logits, dim=-1)


def log_softmax_torch(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.contiguous(), dim=-1)
