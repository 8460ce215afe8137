"""Passing an HTTP request on, and its answer back: ASGI on one side, aiohttp on the other. Knows no
path.
"""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

_HOP = frozenset((b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"))
_OURS = frozenset((b"x-request-id", b"request-id", b"server-timing"))  # the gate here adds its own


class HeldAnswer:
    """A `send` that holds answers of the statuses that `is_held` names, and lets others through."""

    def __init__(self, send: Send, is_held: Callable[[int], bool]) -> None:
        self._send = send
        self._is_held = is_held
        self._messages: list[Message] = []
        self.is_sent = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._is_held(message["status"]):
            self.is_sent = True
        if self.is_sent:
            await self._send(message)
        else:
            self._messages.append(message)

    @property
    def status(self) -> int:
        return int(self._messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self._messages[1:])

    async def release(self, body: bytes | None = None) -> None:
        """Send what was held, with another body if one is given."""
        start = self._messages[0]
        body = self.body if body is None else body
        headers = [(n, v) for n, v in start.get("headers", ()) if n.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        self.is_sent = True
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


async def read_whole(receive: Receive) -> tuple[bytes, Receive]:
    """The body, and a `receive` that gives it again. The server bounds its size and time."""
    left: list[Message] = []
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            left.append(message)
            break
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    if not left:
        left.append({"type": "http.request", "body": body, "more_body": False})

    async def again() -> Message:
        return left.pop(0) if left else await receive()

    return body, again


async def until_gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def request_of(
    session: aiohttp.ClientSession, scope: Scope, body: bytes
) -> aiohttp.client._RequestContextManager:
    """The same request, with what the client showed, to whoever `session` connects to."""
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    query = scope["query_string"].decode("latin-1")
    url = URL(f"http://worker{path}" + (f"?{query}" if query else ""), encoded=True)
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name.lower() not in _HOP
    ]
    method = scope["method"]
    return session.request(method, url, headers=headers, data=body or None, allow_redirects=False)


def start_of(answer: aiohttp.ClientResponse) -> Message:
    headers = [
        (name.lower(), value)
        for name, value in answer.raw_headers
        if name.lower() not in _HOP and name.lower() not in _OURS
    ]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
