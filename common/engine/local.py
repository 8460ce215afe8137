"""An engine in this process as an `EngineClient`: what an instance's API front end talks to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from common.engine.driver import EngineDriver
from common.engine.interface import StepResult
from common.engine_client import ModelCard
from common.errors import Unavailable, XpydError
from common.request import EngineRequest, TokenEvent
from common.unread import Unread

MAX_SILENCE_S = 30.0  # a step may be long; a thread that shows nothing for so long hangs

News = TokenEvent | XpydError


class _Inbox:
    """What one request has got, and its reader has not taken."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[News] = asyncio.Queue()
        self._unread = Unread()
        self._is_given_up = False

    def put(self, event: TokenEvent) -> bool:
        """False, once: its reader is given up, and gets an error behind what came before."""
        if self._is_given_up:
            return True
        self.queue.put_nowait(event)
        self._unread.came(event)
        if not self._unread.is_too_much(self.queue.qsize()):
            return True
        self._is_given_up = True
        self.queue.put_nowait(Unavailable("the client does not read its answer"))
        return False

    def taken(self, news: News) -> News:
        if isinstance(news, TokenEvent):
            self._unread.taken(news)
        return news


class LocalEngine:
    """Others' requests (a role server's) may run in the same engine: their events are ignored."""

    def __init__(
        self,
        driver: EngineDriver,
        card: ModelCard,
        adapters: Callable[[], list[ModelCard]] = list,
    ) -> None:
        """`adapters`: the cards of those that the engine serves now."""
        self._driver = driver
        self._card = card
        self._adapters = adapters
        self._inboxes: dict[str, _Inbox] = {}
        driver.listeners.append(self._on_step)

    def models(self) -> list[ModelCard]:
        return [self._card, *self._adapters()] if self._driver.is_alive() else []

    def is_ready(self) -> bool:
        silence = time.monotonic() - self._driver.last_progress
        return self._driver.is_alive() and silence < MAX_SILENCE_S

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        inbox = _Inbox()
        if request.request_id in self._inboxes:
            raise XpydError(f"request {request.request_id} is running already")
        self._inboxes[request.request_id] = inbox
        is_over = False
        try:
            await self._driver.call(lambda engine: engine.add(request))
            while not is_over:
                news = await self._next(inbox)
                is_over = isinstance(news, XpydError) or news.finish_reason is not None
                if isinstance(news, XpydError):
                    raise news
                yield news
        finally:
            del self._inboxes[request.request_id]
            if not is_over:
                self._driver.post(lambda engine: engine.abort(request.request_id))

    async def _next(self, inbox: _Inbox) -> News:
        """Waits as long as the engine shows that it lives."""
        while inbox.queue.empty():
            try:
                news = await asyncio.wait_for(inbox.queue.get(), MAX_SILENCE_S)
            except asyncio.TimeoutError:
                if not self.is_ready():
                    raise Unavailable("the engine does not answer") from None
            else:
                return inbox.taken(news)
        return inbox.taken(inbox.queue.get_nowait())

    def _on_step(self, result: StepResult) -> None:
        for event in result.events:
            inbox = self._inboxes.get(event.request_id)
            if inbox is not None and not inbox.put(event):
                request_id = event.request_id
                self._driver.post(lambda engine, i=request_id: engine.abort(i))  # type: ignore[misc]
        for request_id, error in result.failed:
            if inbox := self._inboxes.get(request_id):
                inbox.queue.put_nowait(error)
