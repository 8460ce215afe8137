"""What the sampler does per row of float32 logits; a row's result does not depend on the others."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.native_library import library_for


def argmax(logits: Tensor) -> Tensor:
    """logits: [rows, vocab] float32 → [rows] int64; the lowest id wins a tie, a NaN beats all."""
    native = library_for(logits) if logits.dtype == torch.float32 else None
    if native is None:
        return argmax_torch(logits)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    out = torch.empty(logits.shape[0], dtype=torch.int64)
    shape = (logits.shape[0], logits.stride(0), logits.shape[1])
    native.xpyd_argmax(logits.data_ptr(), *shape, out.data_ptr())
    return out


def log_softmax(logits: Tensor) -> Tensor:
    """logits: [rows, vocab] float32 → the same shape, float32; -inf stays -inf."""
    native = library_for(logits) if logits.dtype == torch.float32 else None
    if native is None:
        return log_softmax_torch(logits)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    out = torch.empty(logits.shape, dtype=torch.float32)
    shape = (logits.shape[0], logits.stride(0), logits.shape[1])
    native.xpyd_log_softmax(logits.data_ptr(), *shape, out.data_ptr())
    return out


def argmax_torch(logits: Tensor) -> Tensor:
    return torch.argmax(logits, dim=-1)


def log_softmax_torch(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.contiguous(), dim=-1)
