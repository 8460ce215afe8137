"""Is the measuring client itself too slow to be trusted? Knows no requests: it watches the event
loop and the process.

A loop that reaches its tasks late stamps tokens late. The watch asks to be woken every 20 ms and
notes by how much it was late; uvloop's timers alone make that up to a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter, process_time

from benchmarks.percentiles import percentile

_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class ClientCost:
    loop_lag_p99_s: float
    loop_lag_max_s: float
    cpu_fraction: float  # of one core; a Python client cannot use more than one


@dataclass
class CostWatch:
    """`cost` is set when the watch ends."""

    cost: ClientCost | None = None


@contextlib.asynccontextmanager
async def watch_client() -> AsyncIterator[CostWatch]:
    watch = CostWatch()
    lags: list[float] = []
    started_s, cpu_s = perf_counter(), process_time()
    task = asyncio.create_task(_collect(lags))
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        lags.sort()
        elapsed_s = max(perf_counter() - started_s, 1e-9)
        watch.cost = ClientCost(
            percentile(lags, 99) if lags else 0.0,
            lags[-1] if lags else 0.0,
            (process_time() - cpu_s) / elapsed_s,
        )


async def _collect(lags: list[float]) -> None:
    while True:
        asked_s = perf_counter()
        await asyncio.sleep(_INTERVAL_S)
        lags.append(max(0.0, perf_counter() - asked_s - _INTERVAL_S))
