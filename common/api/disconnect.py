"""Work that ends when its reason ends: the client has gone, or somebody aborts the request."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up, or stopped reading. There is nobody left to answer."""


class Interruption:
    """Runs one piece of work in the task of its caller; `end` cancels it from outside. A task of
    its own would cost every request two turns of the event loop."""

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._task: asyncio.Task[Any] | None = None  # while the work runs

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or what `end` was told, once `work` has cleaned up."""
        if self._error is not None:
            work.close()
            raise self._error
        self._task = task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if self._error is None:
                raise
            if sys.version_info >= (3, 11) and task is not None and task.uncancel():
                raise  # somebody else cancels the caller as well
            raise self._error from None
        finally:
            self._task = None

    def end(self, error: Exception) -> None:
        """Without effect on work that is over."""
        if self._error is not None:
            return
        self._error = error
        if self._task is not None:
            self._task.cancel()


async def until_disconnect(
    receive: Receive,
    work: Coroutine[Any, Any, T],
    *watches: Coroutine[Any, Any, Exception],
    interruption: Interruption | None = None,
) -> T:
    """The result of `work`. Cancels it, and waits for it to end, as soon as the client hangs up
    (ClientGone) or one of the `watches` returns an exception (which is raised). `interruption`: of
    a caller who has more reasons."""
    interrupted = interruption or Interruption()
    watching = [asyncio.ensure_future(watch) for watch in (_hang_up(receive), *watches)]
    for each in watching:
        each.add_done_callback(partial(_tell, interrupted))
    try:
        return await interrupted.run(work)
    finally:
        for each in watching:
            each.cancel()


def _tell(interrupted: Interruption, watch: asyncio.Future[Exception]) -> None:
    if not watch.cancelled():
        interrupted.end(watch.exception() or watch.result())  # type: ignore[arg-type]


async def _hang_up(receive: Receive) -> Exception:
    while (await receive())["type"] != "http.disconnect":
        pass
    return ClientGone()
