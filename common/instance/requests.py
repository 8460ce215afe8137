"""The requests that proxies run on this instance: opened, fed to the engine, ended exactly once.

Both roles are built on it; it knows the engine's driver and the outbox, no KV connector.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from common.engine.driver import EngineDriver
from common.engine.engine import StepResult
from common.errors import XpydError
from common.instance.outbox import Origin, Outbox, Send
from common.request import EngineRequest

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]  # called when its task first runs


class Requests:
    def __init__(self, driver: EngineDriver, send: Send) -> None:
        self.driver = driver
        self.outbox = Outbox(send)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, request_id: str, origin: Origin, work: Work) -> None:
        """Open the request and do `work` for it; an `XpydError` it raises is told to the proxy.

        A request id that is still open belongs to an older attempt of the same request: that one
        ends.
        """
        self.stop(request_id)
        self.outbox.open(request_id, origin)
        task = asyncio.create_task(self._guard(request_id, origin, work))
        self._tasks[request_id] = task
        task.add_done_callback(lambda done: self._forget(request_id, done))

    def stop(self, request_id: str) -> None:
        """Abort: nothing more is sent, the engine forgets it, its work is cancelled. Idempotent."""
        self.outbox.close(request_id)
        if task := self._tasks.pop(request_id, None):
            task.cancel()
        self.driver.post(lambda engine: engine.abort(request_id))

    def stop_peer(self, peer: bytes) -> list[str]:
        """Abort all that one proxy had asked for; returns their ids."""
        lost = self.outbox.of_peer(peer)
        for request_id in lost:
            self.stop(request_id)
        return lost

    async def add(self, request: EngineRequest, *, offer: bool = False) -> None:
        """Give the sequence to the engine. Raises what the engine raises when it refuses."""
        await self.driver.call(lambda engine: engine.add(request, offer=offer))
        if self.outbox.origin(request.request_id) is None:  # aborted meanwhile
            self.driver.post(lambda engine: engine.abort(request.request_id))

    def on_step(self, result: StepResult) -> None:
        self.outbox.deliver(result.events)
        for request_id, error in result.failed:
            self.outbox.fail(request_id, error)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for request_id in [*self._tasks]:
            self.stop(request_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guard(self, request_id: str, origin: Origin, work: Work) -> None:
        try:
            await work()
        except XpydError as error:
            self._fail(request_id, origin, error)
        except Exception:
            log.exception("request_id=%s failed", request_id)
            self._fail(request_id, origin, XpydError("internal error; see the instance's log"))

    def _fail(self, request_id: str, origin: Origin, error: XpydError) -> None:
        if self.outbox.origin(request_id) is origin:
            self.outbox.fail(request_id, error)

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(request_id) is task:
            del self._tasks[request_id]
