"""What the sampler does per row of float32 logits; a row's result does not depend on the others."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.native_library import library_for


def best(logits: Tensor) -> tuple[list[int], list[int]]:
    """logits: [rows, vocab] float32 → the id of each row's largest, and rows where that is not
    finite. The lowest id wins a tie, a NaN beats all."""
    native = library_for(logits) if logits.dtype == torch.float32 else None
    if native is None:
        return best_torch(logits)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows = logits.shape[0]
    out = torch.empty(2 * rows, dtype=torch.int64)
    shape = (rows, logits.stride(0), logits.shape[1])
    native.xpyd_best(logits.data_ptr(), *shape, out.data_ptr())
    found: list[int] = out.tolist()
    return found[:rows], [row for row, is_finite in enumerate(found[rows:]) if not is_finite]


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


def best_torch(logits: Tensor) -> tuple[list[int], list[int]]:
    chosen = torch.argmax(logits, dim=-1)
    is_finite = logits.gather(1, chosen[:, None])[:, 0].isfinite()
    return chosen.tolist(), (~is_finite).nonzero()[:, 0].tolist()


def log_softmax_torch(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.contiguous(), dim=-1)
