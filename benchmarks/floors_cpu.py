"""What the machine allows right now: bytes read and bfloat16 products per second, through torch.

Cheap enough to measure again in every round, so that a ratio compares one minute with itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_READ_BYTES = 512 << 20
_SIZE = 1536  # of the square product


class Floors:
    """Best of a few tries each, with a number of threads."""

    def __init__(self, threads: int, tries: int = 3) -> None:
        self._threads, self._tries = threads, tries
        self._memory = torch.ones(_READ_BYTES // 4)
        self._matrix = torch.randn(_SIZE, _SIZE).to(torch.bfloat16)

    def read(self) -> float:
        """Bytes per second."""
        return _READ_BYTES / self._best(lambda: self._memory.sum())

    def multiply(self) -> float:
        """Floating point operations per second of oneDNN's product."""
        return 2 * _SIZE**3 / self._best(lambda: self._matrix @ self._matrix)

    def _best(self, work: Callable[[], object]) -> float:
        torch.set_num_threads(self._threads)
        times = []
        for _ in range(self._tries):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times)
