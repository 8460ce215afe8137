"""Which operations run in Triton, and whether they keep every row's bits (batch-invariant mode).

Tensors on a GPU go to the Triton faces if triton can be imported; XPYD_TRITON=0 forces plain torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

_FP8_CAPABILITY = (8, 9)  # the first whose instructions know eight-bit floats


class _Mode:
    """One per process: an instance runs one model in one mode."""

    is_batch_invariant = False


@functools.cache
def has_triton() -> bool:
    is_wanted = os.environ.get("XPYD_TRITON", "1") != "0"
    return is_wanted and importlib.util.find_spec("triton") is not None


def triton_serves(*tensors: Tensor) -> bool:
    return all(tensor.is_cuda for tensor in tensors) and has_triton()


def has_fp8(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


def set_batch_invariant(wanted: bool) -> None:
    """From now on a row's result depends on that row alone, bit for bit, as it always does on CPU.

    Off, cuBLAS chooses another order of sums for another number of rows. Set it before the first
    forward pass: captured graphs keep what they were captured with.
    """
    _Mode.is_batch_invariant = wanted


def is_batch_invariant() -> bool:
    return _Mode.is_batch_invariant
