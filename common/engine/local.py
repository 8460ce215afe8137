"""An engine in this process as an `EngineClient`: what an instance's API front end talks to."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from common.engine.driver import EngineDriver
from common.engine.interface import StepResult
from common.engine_client import ModelCard
from common.errors import Unavailable, XpydError
from common.request import EngineRequest, TokenEvent
from common.unread import Unread

MAX_SILENCE_S = 30.0  # a step may be long; a thread that shows nothing for so long hangs
WATCH_S = 1.0  # how often that is looked at while somebody waits

News = TokenEvent | XpydError


class _Inbox:
    """What one request has got, and its reader has not taken. One reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: deque[News] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._unread = Unread()
        self._is_given_up = False

    def put(self, event: TokenEvent) -> bool:
        """False, once: its reader is given up, and gets an error behind what came before."""
        if self._is_given_up:
            return True
        self._unread.came(event)
        self._add(event)
        if not self._unread.is_too_much(len(self._news)):
            return True
        self.fail(Unavailable("the client does not read its answer"))
        return False

    def fail(self, error: XpydError) -> None:
        """The last news: nothing is taken in behind it."""
        if not self._is_given_up:
            self._is_given_up = True
            self._add(error)

    async def next(self) -> News:
        while not self._news:
            self._waiter = self._loop.create_future()
            await self._waiter
        news = self._news.popleft()
        if isinstance(news, TokenEvent):
            self._unread.taken(news)
        return news

    def _add(self, news: News) -> None:
        self._news.append(news)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


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
        self._is_watching = False
        driver.listeners.append(self._on_step)

    def models(self) -> list[ModelCard]:
        return [self._card, *self._adapters()] if self._driver.is_alive() else []

    def is_ready(self) -> bool:
        silence = time.monotonic() - self._driver.last_progress
        return self._driver.is_alive() and silence < MAX_SILENCE_S

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        inbox = _Inbox(asyncio.get_running_loop())
        if request.request_id in self._inboxes:
            raise XpydError(f"request {request.request_id} is running already")
        self._inboxes[request.request_id] = inbox
        if not self._is_watching:
            self._is_watching = True
            self._watch(asyncio.get_running_loop())
        is_over = False
        try:
            await self._driver.call(lambda engine: engine.add(request))
            while not is_over:
                news = await inbox.next()
                is_over = isinstance(news, XpydError) or news.finish_reason is not None
                if isinstance(news, XpydError):
                    raise news
                yield news
        finally:
            del self._inboxes[request.request_id]
            if not is_over:
                self._abort(request.request_id)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all who wait: they wait as long as the engine shows that it lives."""
        if not self._inboxes:
            self._is_watching = False
            return
        if time.monotonic() - self._driver.last_progress >= MAX_SILENCE_S:
            for request_id, inbox in self._inboxes.items():
                inbox.fail(Unavailable("the engine does not answer"))
                self._abort(request_id)
        loop.call_later(WATCH_S, self._watch, loop)

    def _on_step(self, result: StepResult) -> None:
        for event in result.events:
            inbox = self._inboxes.get(event.request_id)
            if inbox is not None and not inbox.put(event):
                self._abort(event.request_id)
        for request_id, error in result.failed:
            if inbox := self._inboxes.get(request_id):
                inbox.fail(error)

    def _abort(self, request_id: str) -> None:
        self._driver.post(lambda engine: engine.abort(request_id))
