"""One run from start to end: reach the server, warm it up, send the workload, collect. Knows no
files and no report.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import aiohttp

from benchmarks.client import Client, Target, Unreachable, list_models, open_session
from benchmarks.client_cost import watch_client
from benchmarks.dataset import BenchRequest
from benchmarks.report import Run
from benchmarks.runner import RunLog, run_fixed_concurrency, run_open_loop
from benchmarks.sample import Sample
from common.errors import ConfigError

_RETRY_S = 0.5
_WARMUP_CONCURRENCY = 4
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """A workload: what is sent and when. Without `times` it is `max_concurrency` requests at a
    time.
    """

    requests: Sequence[BenchRequest]
    warmups: Sequence[BenchRequest]
    times: Sequence[float] | None
    max_concurrency: int | None


class WarmupFailed(Exception):
    """Not one warm-up request succeeded."""


async def measure(
    plan: Plan,
    target: Target,
    *,
    ready_timeout_s: float = 0.0,
    on_done: Callable[[Sample], None] = lambda sample: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Run, str]:
    """The run and the model's name. Raises Unreachable, WarmupFailed, ConfigError; Ctrl-C and
    SIGTERM end it early.
    """
    async with open_session(target) as session:
        names = await _reach(session, target, ready_timeout_s)
        target = _with_model(target, names, say)
        if plan.warmups:
            await _warm_up(session, target, plan, say)
        client = Client(session, target, run_id=uuid.uuid4().hex[:8])
        log = RunLog(on_done=on_done)
        load = _load(plan, client, log)
        with _quiet_heap():
            async with watch_client() as watch:
                is_interrupted = await _until_signal(load)
    assert watch.cost is not None
    run = Run(
        sorted(log.samples, key=lambda sample: sample.index),
        log.started_s,
        log.ended_s - log.started_s,
        watch.cost,
        num_cancelled=log.num_started - len(log.samples),
        is_interrupted=is_interrupted,
    )
    return run, target.model


def _load(plan: Plan, client: Client, log: RunLog) -> Coroutine[Any, Any, None]:
    if plan.times is not None:
        return run_open_loop(plan.requests, plan.times, client.send, log, plan.max_concurrency)
    assert plan.max_concurrency is not None
    return run_fixed_concurrency(plan.requests, plan.max_concurrency, client.send, log)


async def check_reachable(target: Target, ready_timeout_s: float) -> None:
    """Raises Unreachable."""
    async with open_session(target) as session:
        await _reach(session, target, ready_timeout_s)


async def _reach(
    session: aiohttp.ClientSession, target: Target, ready_timeout_s: float
) -> list[str]:
    deadline = perf_counter() + ready_timeout_s
    while True:
        try:
            return await list_models(session, target)
        except Unreachable:
            if perf_counter() + _RETRY_S > deadline:
                raise
        await asyncio.sleep(_RETRY_S)


def _with_model(target: Target, names: list[str], say: Callable[[str], None]) -> Target:
    if not target.model:
        if not names:
            raise ConfigError("the server lists no models: give --model")
        return replace(target, model=names[0])
    if names and target.model not in names:
        say(f"warning: the server lists {', '.join(names)}, not {target.model}")
    return target


async def _warm_up(
    session: aiohttp.ClientSession, target: Target, plan: Plan, say: Callable[[str], None]
) -> None:
    say(f"warming up with {len(plan.warmups)} requests")
    client = Client(session, target, run_id=f"warm-{uuid.uuid4().hex[:8]}")
    log = RunLog()
    concurrency = plan.max_concurrency or _WARMUP_CONCURRENCY
    await run_fixed_concurrency(plan.warmups, concurrency, client.send, log)
    if not any(sample.ok for sample in log.samples):
        raise WarmupFailed(f"every warm-up request failed: {log.samples[0].error}")


async def _until_signal(load: Coroutine[Any, Any, None]) -> bool:
    """Run `load`; True if a first Ctrl-C or SIGTERM ended it. A second one acts as if we were not
    here.
    """
    task = asyncio.create_task(load)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    was_asked = False

    def stop() -> None:
        nonlocal was_asked
        was_asked = True
        task.cancel()
        _remove()

    def _remove() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
        for number in signals:
            loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not was_asked:
            raise
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            _remove()
    return was_asked


@contextlib.contextmanager
def _quiet_heap() -> Iterator[None]:
    """Thousands of prompts stay alive through the run: keep the garbage collector from walking
    them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
