"""An engine in this process as an `EngineClient`: what an instance's API front end talks to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from common.engine.driver import EngineDriver
from common.engine.interface import StepResult
from common.engine_client import ModelCard
from common.errors import Unavailable, XpydError
from common.request import EngineRequest, TokenEvent

MAX_SILENCE_S = 30.0  # a step may be long; a thread that shows nothing for so long hangs

News = TokenEvent | XpydError


class LocalEngine:
    """Others' requests (a role server's) may run in the same engine: their events are ignored."""

    def __init__(self, driver: EngineDriver, card: ModelCard) -> None:
        self._driver = driver
        self._card = card
        self._queues: dict[str, asyncio.Queue[News]] = {}
        driver.listeners.append(self._on_step)

    def models(self) -> list[ModelCard]:
        return [self._card] if self._driver.is_alive() else []

    def is_ready(self) -> bool:
        silence = time.monotonic() - self._driver.last_progress
        return self._driver.is_alive() and silence < MAX_SILENCE_S

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        queue: asyncio.Queue[News] = asyncio.Queue()
        if request.request_id in self._queues:
            raise XpydError(f"request {request.request_id} is running already")
        self._queues[request.request_id] = queue
        is_over = False
        try:
            await self._driver.call(lambda engine: engine.add(request))
            while not is_over:
                news = await self._next(queue)
                is_over = isinstance(news, XpydError) or news.finish_reason is not None
                if isinstance(news, XpydError):
                    raise news
                yield news
        finally:
            del self._queues[request.request_id]
            if not is_over:
                self._driver.post(lambda engine: engine.abort(request.request_id))

    async def _next(self, queue: asyncio.Queue[News]) -> News:
        """Waits as long as the engine shows that it lives."""
        while queue.empty():
            try:
                return await asyncio.wait_for(queue.get(), MAX_SILENCE_S)
            except asyncio.TimeoutError:
                if not self.is_ready():
                    raise Unavailable("the engine does not answer") from None
        return queue.get_nowait()

    def _on_step(self, result: StepResult) -> None:
        for event in result.events:
            if queue := self._queues.get(event.request_id):
                queue.put_nowait(event)
        for request_id, error in result.failed:
            if queue := self._queues.get(request_id):
                queue.put_nowait(error)
