"""Work that ends when its reason ends: the client has gone, or somebody aborts the request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up, or stopped reading. There is nobody left to answer."""


async def until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, T], *watches: Coroutine[Any, Any, Exception]
) -> T:
    """The result of `work`. Cancels it, and waits for it to end, as soon as the client hangs up
    (ClientGone) or one of the `watches` returns an exception (which is raised)."""
    task = asyncio.ensure_future(work)
    watching = [asyncio.ensure_future(watch) for watch in (_hang_up(receive), *watches)]
    try:
        await asyncio.wait({task, *watching}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise next(watch.result() for watch in watching if watch.done())
    finally:
        for each in (task, *watching):
            each.cancel()
        await asyncio.gather(task, *watching, return_exceptions=True)


async def _hang_up(receive: Receive) -> Exception:
    while (await receive())["type"] != "http.disconnect":
        pass
    return ClientGone()
