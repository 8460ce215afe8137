"""Seconds of GPU work by events: medians, the cache flushed between runs where that matters."""

from __future__ import annotations

from collections.abc import Callable

import torch

_FLUSH_BYTES = 256 << 20  # more than any L2 cache


def seconds(work: Callable[[], object], *, runs: int = 20, is_cold: bool = True) -> float:
    """Median over `runs`, after two that do not count.

    is_cold: nothing of it is in the L2 cache
    """
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda") if is_cold else None
    times: list[float] = []
    for _ in range(runs):
        if flush is not None:
            flush.zero_()
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[len(times) // 2]
