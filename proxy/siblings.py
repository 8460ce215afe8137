"""The other workers of one port: asked for what only they know, told what all must know.

A client's connection ends at any worker. Most of what it may ask is the same everywhere; not so:

    stored responses    the worker that made one has it: asked here first, then the others in turn
    changes             drain, add, remove, abort: done here, then repeated at every other worker,
                        and written down for those that start later (wishes.py)
    /status, /instances all workers' as one (whole_status.py); among workers, each tells its part
    /metrics, /load     all workers' added up (metrics_pages.py)

Workers reach each other over Unix sockets in a directory that only their user may enter. What comes
over them is never passed on again. Stands inside the gate: what is forwarded has shown its key, and
shows it again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from common.api.sse import encode_json
from common.errors import XpydError
from proxy.forwarding import HeldAnswer, read_whole, request_of, start_of, until_gone
from proxy.metrics_pages import add_pages, counts_of
from proxy.whole_status import Part, whole
from proxy.wishes import Wishes, write_wishes

log = logging.getLogger(__name__)

RESPONSES = "/v1/responses"
REPEATED = frozenset(
    ("/instances/add", "/instances/remove", "/instances/drain", "/inference/v1/abort_requests")
)
ASK_TIMEOUT_S = 2.0  # for a page or a change; streams take as long as they take
_PAGES = frozenset(("/status", "/instances", "/metrics", "/load"))
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


def wishes_in(directory: Path) -> Path:
    return directory / "wishes.json"


class Siblings:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        place: Place,
        part: Callable[[], Part],
        wishes: Callable[[], Wishes],
    ) -> None:
        """`part`: what this worker adds to `/status`. `wishes`: what administrators have changed
        here, which a worker that starts later reads."""
        self._wishes = wishes
        self._app = app
        self._place = place
        self._part = part
        self._past = counts_of(_read(_page_in(place.directory, place.number)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"] in _PAGES:
            await self._serve_page(scope, receive, send)
        elif _is_internal(scope):
            await self._app(scope, receive, send)
        elif scope["path"].startswith(RESPONSES):
            await self._serve_response(scope, receive, send)
        elif scope["path"] in REPEATED and scope["method"] == "POST":
            await self._repeat(scope, receive, send)
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
            write_wishes(wishes_in(self._place.directory), self._wishes())
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

    async def _serve_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/status", "/instances"):
            body = await self._status(scope)
            await Response(body, media_type="application/json")(scope, receive, send)
            return
        here = HeldAnswer(send, lambda status: status == 200)
        await self._app(scope, receive, here)
        if here.is_sent:
            return
        if scope["path"] == "/load":
            await here.release(await self._load(scope, here.body))
        else:
            await here.release((await self._metrics(scope, here.body.decode())).encode())

    async def _status(self, scope: Scope) -> bytes:
        own = {**self._part(), "worker": {"number": self._place.number, "pid": os.getpid()}}
        if _is_internal(scope):
            return encode_json(own)
        answers = await self._ask_others(scope)
        parts = [own, *(json.loads(answer) for answer in answers.values() if answer)]
        found = whole(parts, self._place.count)
        shown = {"instances": found["instances"]} if scope["path"] == "/instances" else found
        return encode_json(shown)

    async def _load(self, scope: Scope, own: bytes) -> bytes:
        others = [] if _is_internal(scope) else (await self._ask_others(scope)).values()
        answers = [json.loads(answer) for answer in (own, *others) if answer]
        return encode_json({"server_load": sum(answer["server_load"] for answer in answers)})

    async def _metrics(self, scope: Scope, own: str) -> str:
        """What is shown of a worker is kept: its successor goes on from there, and until there is
        one, or while it does not answer, the others show it."""
        own = add_pages([own, self._past])
        kept = _page_in(self._place.directory, self._place.number)
        kept.with_suffix(".new").write_text(own)
        kept.with_suffix(".new").replace(kept)
        if _is_internal(scope):
            return own
        pages = [own]
        for number, answer in (await self._ask_others(scope)).items():
            last = _page_in(self._place.directory, number)
            pages.append(answer.decode() if answer else counts_of(_read(last)))
        return add_pages(pages)

    async def _ask_others(self, scope: Scope) -> dict[int, bytes]:
        """The same of every other worker, by number; b"" of those that do not answer."""
        others = self._place.others
        found = await asyncio.gather(*(self._ask(number, scope) for number in others))
        return dict(zip(others, found, strict=True))

    async def _ask(self, number: int, scope: Scope) -> bytes:
        try:
            timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
            async with (
                self._session(number, timeout) as session,
                request_of(session, scope, b"") as answer,
            ):
                return await answer.read() if answer.status == 200 else b""
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return b""

    def _session(
        self, number: int, timeout: aiohttp.ClientTimeout | None = None
    ) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self._place.socket_of(number)))
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout or aiohttp.ClientTimeout(total=None, connect=ASK_TIMEOUT_S),
            auto_decompress=False,
        )


def _page_in(directory: Path, number: int) -> Path:
    """The metrics of one worker, as they were last shown."""
    return directory / f"metrics-{number}.prom"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


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
