"""One write for an answer's head and what comes first behind it: one system call less per answer,
and a client is woken once."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class HeadWithBody:
    """Stands between one request's cycle and the connection. uvicorn writes the head by itself, as
    the first thing once the response has started; every answer goes on with a body, or closes."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle: RequestResponseCycle | None = (
            cycle  # until it has a head: they hold each other
        )
        self._transport: asyncio.Transport = cycle.transport
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._cycle is not None and self._cycle.response_started:
            self._cycle, self._held = None, data
            return
        if self._held:
            data, self._held = self._held + data, b""
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""
        self._transport.close()
