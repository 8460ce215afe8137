"""uvicorn's HTTP/1.1 connection with the bounds it lacks: time, size and number of everything.

A connection is always in one of four phases, and in each but the third it has a deadline:

    HEAD ──headers complete──▶ BODY ──message complete──▶ ANSWERING ──answered──▶ HEAD or closed
     └───── refused: answered with an error object, then OVER: nothing is read any more ─────┘

`sweep(now)` ends what is overdue; the server calls it twice a second. Knows no path and no key.
"""

from __future__ import annotations

import asyncio
import enum
import http
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.http_writes import HeadWithBody

OVER_S = 1.0  # that a client gets to read a refusal before its socket is closed


@dataclass(frozen=True, slots=True)
class HttpLimits:
    header_s: float = 9.0  # from the first byte, or the connection, to the end of the headers
    body_s: float = 29.0  # from there to the last byte of the body
    stalled_s: float = 30.0  # a client that reads nothing for so long is cut off
    max_headers: int = 256  # trailers included
    max_header_bytes: int = 64 << 10
    max_connections: int = 2048
    max_pipelined: int = 16


class Phase(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()
    OVER = enum.auto()


class GuardedProtocol(HttpToolsProtocol):
    def __init__(self, *arguments: Any, limits: HttpLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._phase = Phase.ANSWERING
        self._due: float | None = None  # loop time
        self._num_headers = 0
        self._header_bytes = 0  # of the headers parsed so far
        self._unparsed_bytes = 0  # received since the head began
        self._refusal: tuple[int, str, str] | None = None  # from inside the parser's callbacks
        self._stalled: tuple[int, float] | None = None  # bytes unsent, since when

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "too_many_connections", "there are too many connections")
        else:
            self._enter(Phase.HEAD, self._limits.header_s)

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.OVER:
            return
        self._unset_keepalive_if_required()
        if self._phase is Phase.ANSWERING:  # the next request, or what pretends to be one
            self._begin_head()
        if self._phase is Phase.HEAD:
            self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # we speak one protocol, and what follows is another
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            invalid = 400, "invalid_http", "this is not a valid HTTP request"
            self._refuse(*(self._refusal or invalid))
            return
        if self._phase is Phase.HEAD and self._unparsed_bytes > self._limits.max_header_bytes:
            self._refuse(*self._too_large())

    # --- called by the parser ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._phase is not Phase.HEAD:
            self._begin_head()
        self._num_headers = self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._header_bytes += len(name) + len(value)
        is_too_many = self._num_headers > self._limits.max_headers
        if is_too_many or self._header_bytes > self._limits.max_header_bytes:
            self._stop(*self._too_large())
        if self._phase is Phase.HEAD:  # trailers are counted and dropped: checks were made without
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._stop(400, "invalid_http", "this is not HTTP version 1.0 or 1.1")
        if len(self.pipeline) >= self._limits.max_pipelined:
            self._stop(400, "too_many_requests", "too many requests without reading an answer")
        self._enter(Phase.BODY, self._limits.body_s)
        super().on_headers_complete()
        if self.cycle.transport is self.transport:
            self.cycle.transport = cast(asyncio.Transport, HeadWithBody(self.cycle))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase, self._due = Phase.ANSWERING, None
        if self.cycle.response_complete:  # answered before the body had come: idle from now on
            self._enter(Phase.ANSWERING, self.timeout_keep_alive)

    # --- deadlines ---------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """End what is overdue at `now`, in the event loop's time."""
        if self._is_stalled(now) or (self._phase is Phase.OVER and self._is_due(now)):
            _forget_unsent(self.transport)
            self.transport.abort()
        elif not self._is_due(now) or self.transport.is_closing():
            return
        elif self.flow.read_paused:  # it is us who do not read
            self._due = now + self._limits.body_s
        elif self._phase is Phase.ANSWERING or not (self._unparsed_bytes and self._may_answer()):
            self.transport.close()
        else:
            self._refuse(408, "request_timeout", "the request did not arrive in time")

    def _is_due(self, now: float) -> bool:
        return self._due is not None and now >= self._due

    def _is_stalled(self, now: float) -> bool:
        """Has nothing left our buffer for `stalled_s`, although nothing is added to it?"""
        if not (self.flow.write_paused or self.transport.is_closing()):
            self._stalled = None
            return False
        unsent = self.transport.get_write_buffer_size()
        if self._stalled is None or unsent < self._stalled[0]:
            self._stalled = unsent, now
        return now - self._stalled[1] >= self._limits.stalled_s

    def _enter(self, phase: Phase, within_s: float) -> None:
        self._phase = phase
        self._due = self.loop.time() + within_s

    def _begin_head(self) -> None:
        self._unparsed_bytes = 0
        self._enter(Phase.HEAD, self._limits.header_s)

    # --- refusals ----------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_http", msg)

    def _stop(self, status: int, code: str, message: str) -> None:
        """From inside the parser: it gives up, and `data_received` refuses."""
        self._refusal = status, code, message
        raise ValueError(message)

    def _too_large(self) -> tuple[int, str, str]:
        headers, size = self._limits.max_headers, self._limits.max_header_bytes
        return 431, "headers_too_large", f"at most {headers} headers of {size} bytes in all"

    def _may_answer(self) -> bool:
        """No answer to an earlier request is under way that ours would garble."""
        if self.pipeline:
            return False
        if self.cycle is None or self.cycle.response_complete:
            return True
        return self._phase is Phase.BODY and not self.cycle.response_started

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer, read nothing more, and let the client have the answer before the socket goes:
        a socket closed over unread bytes would take it back."""
        if not self._may_answer():
            self.transport.close()
            return
        self.transport.write(_answer(status, code, message))
        self._enter(Phase.OVER, OVER_S)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _forget_unsent(transport: asyncio.Transport) -> None:
    """Closing resets the connection: the kernel, too, stops waiting for the reader."""
    own = transport.get_extra_info("socket")
    if own is not None and own.fileno() >= 0:
        with socket.socket(fileno=os.dup(own.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _answer(status: int, code: str, message: str) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    retry = "retry-after: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"connection: close\r\n{retry}\r\n"
    )
    return head.encode() + body
