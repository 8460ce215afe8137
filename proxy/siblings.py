"""The other workers of one port: asked for what only they know, told what all must know.

A client's connection ends at any worker. Most of what it may ask is the same everywhere; not so:

    stored responses   the worker that made one has it: asked here first, then the others in turn
    changes            drain, add, remove, abort: done here, then repeated at every other worker
    /metrics           all workers' pages in one (metrics_pages.py)

Workers reach each other over Unix sockets in a directory that only their user may enter. What comes
over them is never passed on again. Stands inside the gate: what is forwarded has shown its key, and
shows it again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import XpydError
from proxy.forwarding import HeldAnswer, read_whole, request_of, start_of, until_gone
from proxy.metrics_pages import merge_pages

log = logging.getLogger(__name__)

RESPONSES = "/v1/responses"
REPEATED = frozenset(
    ("/instances/add", "/instances/remove", "/instances/drain", "/inference/v1/abort_requests")
)
ASK_TIMEOUT_S = 2.0  # for a page or a change; streams take as long as they take
MISSING = ("not_found", "previous_response_not_found", "item_not_found")  # another may have it


@dataclass(frozen=True, slots=True)
class Place:
    """Which worker this is."""

    number: int
    count: int
    directory: Path

    def socket_of(self, number: int) -> Path:
        return self.directory / f"worker-{number}.sock"

    @property
    def others(self) -> list[int]:
        return [number for number in range(self.count) if number != self.number]


def ledger_in(directory: Path) -> Path:
    """What all workers count together."""
    return directory / "ledger"


class Siblings:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self._app = app
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_internal(scope):
            await self._app(scope, receive, send)
        elif scope["path"].startswith(RESPONSES):
            await self._serve_response(scope, receive, send)
        elif scope["path"] in REPEATED and scope["method"] == "POST":
            await self._repeat(scope, receive, send)
        elif scope["path"] == "/metrics" and scope["method"] == "GET":
            await self._serve_metrics(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    # --- what one worker knows ---------------------------------------------------------------

    async def _serve_response(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, again = await read_whole(receive)
        try:
            await self._app(scope, again, send)
        except XpydError as error:  # told by the gate, unless somebody else knows better
            if error.code not in MISSING:
                raise
            for number in self._place.others:
                if await self._ask_through(number, scope, body, receive, send):
                    return
            raise

    async def _ask_through(
        self, number: int, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> bool:
        """Pass the other's answer on as it comes; False if it has none either."""
        asking = asyncio.ensure_future(self._pass_on(number, scope, body, send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
            return asking.done() and asking.result() or gone.done()
        finally:
            for task in (asking, gone):
                task.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)

    async def _pass_on(self, number: int, scope: Scope, body: bytes, send: Send) -> bool:
        has_begun = False
        try:
            async with self._session(number) as session, request_of(session, scope, body) as answer:
                refusal = await answer.read() if answer.status in (400, 404) else b""
                if refusal and _is_miss(refusal):
                    return False
                await send(start_of(answer))
                has_begun = True
                if refusal:
                    await send({"type": "http.response.body", "body": refusal, "more_body": True})
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return True
        except (aiohttp.ClientError, OSError) as error:
            if has_begun:  # a cut stream, as a proxy's death is
                raise
            log.info("worker %d does not answer: %s", number, error)
            return False

    # --- what all must know ------------------------------------------------------------------

    async def _repeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, again = await read_whole(receive)
        here = HeldAnswer(send, lambda status: status < 300)
        await self._app(scope, again, here)
        if not here.is_sent:
            await asyncio.gather(
                *(self._tell(number, scope, body) for number in self._place.others)
            )
            await here.release()

    async def _tell(self, number: int, scope: Scope, body: bytes) -> None:
        try:
            timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
            async with (
                self._session(number, timeout) as session,
                request_of(session, scope, body) as answer,
            ):
                if answer.status >= 300:
                    log.warning("worker %d: %s gives %d", number, scope["path"], answer.status)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            log.warning("worker %d was not told of %s: %s", number, scope["path"], error)

    # --- one page of all ---------------------------------------------------------------------

    async def _serve_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        here = HeldAnswer(send, lambda status: status == 200)
        await self._app(scope, receive, here)
        if here.is_sent:
            return
        pages = {self._place.number: here.body.decode()}
        others = self._place.others
        found = await asyncio.gather(*(self._page(number, scope) for number in others))
        pages |= {number: page for number, page in zip(others, found, strict=True) if page}
        await here.release(merge_pages(pages).encode())

    async def _page(self, number: int, scope: Scope) -> str:
        try:
            timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
            async with (
                self._session(number, timeout) as session,
                request_of(session, scope, b"") as answer,
            ):
                return await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return ""

    def _session(
        self, number: int, timeout: aiohttp.ClientTimeout | None = None
    ) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self._place.socket_of(number)))
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout or aiohttp.ClientTimeout(total=None, connect=ASK_TIMEOUT_S),
            auto_decompress=False,
        )


def _is_internal(scope: Scope) -> bool:
    """Did it come over our Unix socket? Its address has no port."""
    server = scope.get("server")
    return server is None or server[1] is None


def _is_miss(body: bytes) -> bool:
    """Does this error say that it is not stored there either?"""
    try:
        return json.loads(body)["error"]["code"] in MISSING
    except (ValueError, KeyError, TypeError):
        return False
