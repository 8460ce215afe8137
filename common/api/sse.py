"""Answers over HTTP: JSON when the work is done, or server-sent events while it goes on.

The status line goes out with the first event, so whatever can be refused is refused with a status.
After it an error is one last event. A client that hangs up, or reads nothing for too long, ends the
work; while it reads slowly, one event waits to be sent and nothing piles up behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.api.context import info_of
from common.api.disconnect import ClientGone, Interruption, until_disconnect
from common.api.errors import error_body
from common.api.protocol import StreamOptions
from common.errors import XpydError

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

encode_json = msgspec.json.Encoder().encode


class ChunkWriter:
    """The chunks of one stream. All begin alike, so their beginning is encoded once."""

    def __init__(
        self,
        envelope: dict[str, Any],
        options: StreamOptions | None,
        usage: Callable[[], dict[str, Any]],
        timings: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """`envelope`: the fields that all chunks share. `usage`: asked when a chunk shows it.
        `timings`: asked for the last chunk, which has them beside the usage."""
        self._head = b"data: " + encode_json(envelope)[:-1] + b',"choices":['
        self._shows_usage = options is not None and options.include_usage
        self._shows_running_usage = options is not None and options.continuous_usage_stats
        self._usage = usage
        self._timings = timings

    def chunk(self, choice: dict[str, Any], **extra: Any) -> bytes:
        """One event with one choice; `extra` fields go beside `choices`."""
        tail = b"]"
        for name, value in extra.items():
            tail += b',"' + name.encode() + b'":' + encode_json(value)
        if self._shows_running_usage:
            tail += b',"usage":' + encode_json(self._usage())
        elif self._shows_usage:
            tail += b',"usage":null'
        return self._head + encode_json(choice) + tail + b"}\n\n"

    def last(self) -> bytes:
        """The event that comes after all choices have ended; b"" if nobody asked for it."""
        if not self._shows_usage:
            return b""
        tail = b'],"usage":' + encode_json(self._usage())
        if timings := self._timings():
            tail += b',"timings":' + encode_json(timings)
        return self._head + tail + b"}\n\n"


async def json_answer(
    request: Request,
    work: Coroutine[Any, Any, dict[str, Any]],
    *watches: Coroutine[Any, Any, Exception],
) -> Response:
    """Run `work` as long as the client waits for it (and no watch ends it)."""
    body = await until_disconnect(request.receive, work, *watches)
    body |= info_of(request).answer_fields
    return Response(encode_json(body), media_type="application/json")


class EventStream(Response):
    """Sends what `events` yields (whole events, already encoded), then `done`."""

    def __init__(
        self,
        request: Request,
        events: AsyncGenerator[bytes, None],
        stalled_reader_s: float,
        *watches: Coroutine[Any, Any, Exception],
        done: bytes = DONE,
    ) -> None:
        """`done`: what ends the stream, if its protocol has such a thing."""
        super().__init__()
        self._done = done
        self._watches = watches
        self._events = events
        self._request_id = info_of(request).request_id
        self._stalled_reader_s = stalled_reader_s
        self._sending_since: float | None = None  # monotonic
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        interruption = Interruption()
        self._watch_reader(interruption)
        try:
            await until_disconnect(
                receive, self._send_all(send), *self._watches, interruption=interruption
            )
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        first = await anext(self._events)  # raises before the status line
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            await self._send(send, first)
            async for data in self._events:
                await self._send(send, data)
        except XpydError as error:
            await self._send(send, b"data: " + error_body(error) + b"\n\n")
        except Exception:
            log.exception("stream failed request_id=%s", self._request_id)
            failure = XpydError("the server failed to continue this answer; it has been logged")
            await self._send(send, b"data: " + error_body(failure) + b"\n\n")
        await self._send(send, self._done, is_last=True)

    async def _send(self, send: Send, data: bytes, *, is_last: bool = False) -> None:
        """Waits while the client does not read."""
        self._sending_since = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._sending_since = None

    def _watch_reader(self, interruption: Interruption) -> None:
        """Now and every so often: has one event waited too long to leave?"""
        since = self._sending_since
        if since is not None and time.monotonic() - since > self._stalled_reader_s:
            interruption.end(ClientGone())
            return
        loop, pause_s = asyncio.get_running_loop(), self._stalled_reader_s / 4
        self._timer = loop.call_later(pause_s, self._watch_reader, interruption)
