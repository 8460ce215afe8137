"""The short way to the endpoints that generate: by their exact path, past framework and router.

Of what a framework adds to a request these use nothing: they read the body themselves, and what
they raise is told by the gate, which stands before. Everything else goes on to the router.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Direct:
    def __init__(
        self, app: ASGIApp, posts: Mapping[str, Callable[[Request], Awaitable[Response]]]
    ) -> None:
        """`posts`: what answers POST, by path."""
        self._app = app
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._posts.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
