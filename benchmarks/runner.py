"""When requests go out: by a schedule that does not wait for answers, or a fixed number at a time.

Knows no HTTP and no statistics. Open loop: a request goes out when it is due, however slow the
server is; behind a concurrency limit it waits, and its waiting counts. Fixed concurrency: a request
is due when a place becomes free.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from benchmarks.dataset import BenchRequest
from benchmarks.sample import Sample


class Send(Protocol):
    def __call__(
        self, request: BenchRequest, due_s: float, released_s: float
    ) -> Awaitable[Sample]: ...


@dataclass
class RunLog:
    """What has happened so far; readable at any moment, also after a cancellation."""

    on_done: Callable[[Sample], None] = lambda sample: None
    samples: list[Sample] = field(default_factory=list)
    num_started: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0

    async def record(
        self, send: Send, request: BenchRequest, due_s: float, released_s: float
    ) -> None:
        self.num_started += 1
        sample = await send(request, due_s, released_s)
        self.samples.append(sample)
        self.on_done(sample)


async def run_open_loop(
    requests: Sequence[BenchRequest],
    times: Sequence[float],
    send: Send,
    log: RunLog,
    max_concurrency: int | None = None,
) -> None:
    """Send `requests[i]` at `times[i]` seconds from now; return when all have ended. Cancelling
    ends those in flight.
    """
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()

    async def one(request: BenchRequest, due_s: float, released_s: float) -> None:
        async with gate:
            await log.record(send, request, due_s, released_s)

    tasks: list[asyncio.Task[None]] = []
    log.started_s = perf_counter()
    try:
        for request, time in zip(requests, times, strict=True):
            due_s = log.started_s + time
            released_s = await _sleep_until(due_s)
            tasks.append(asyncio.create_task(one(request, due_s, released_s)))
        await asyncio.gather(*tasks)
    finally:
        log.ended_s = perf_counter()
        await _end(tasks)


async def run_fixed_concurrency(
    requests: Sequence[BenchRequest], concurrency: int, send: Send, log: RunLog
) -> None:
    """Keep `concurrency` requests in flight until all have ended; cancelling ends those."""
    waiting = iter(requests)

    async def place() -> None:
        for request in waiting:
            due_s = perf_counter()
            await log.record(send, request, due_s, due_s)

    log.started_s = perf_counter()
    tasks = [asyncio.create_task(place()) for _ in range(min(concurrency, len(requests)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        log.ended_s = perf_counter()
        await _end(tasks)


async def _sleep_until(due_s: float) -> float:
    """Return at `due_s` or a little later, never before: uvloop's timers have a grain of a
    millisecond.
    """
    while True:
        now = perf_counter()
        if now >= due_s:
            return now
        await asyncio.sleep(due_s - now)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
