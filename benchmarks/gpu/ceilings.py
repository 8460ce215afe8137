"""What this GPU can do at best, measured: the floors that kernels and steps are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import seconds


@dataclass(frozen=True, slots=True)
class Ceilings:
    read_bytes_s: float  # a reduction that only reads
    copy_bytes_s: float  # read and written bytes together
    gemm_flop_s: float  # bfloat16


def measure_ceilings() -> Ceilings:
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda").zero_()
    target = torch.empty_like(source)
    wide = source.view(torch.int64)
    read_s = seconds(lambda: wide.sum())
    copy_s = seconds(lambda: target.copy_(source))
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    gemm_s = seconds(lambda: a @ b, is_cold=False)
    return Ceilings(source.numel() / read_s, 2 * source.numel() / copy_s, 2 * size**3 / gemm_s)
