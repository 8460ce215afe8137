"""The floor of an HTTP server in Python: our server around an app that only answers.

    python -m benchmarks.bare_asgi

It reads the body and streams two events, and does nothing else that a proxy does. What the same
client measures here, no proxy on this stack can be below.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import uvloop

from common.http_server import bind, serve_app, url_of

EVENT = b'data: {"choices":[{"index":0,"text":"token","finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    for data, is_last in ((EVENT, False), (EVENT, False), (DONE, True)):
        await send({"type": "http.response.body", "body": data, "more_body": not is_last})


async def main() -> None:
    listener = bind("127.0.0.1", 0)
    print(url_of(listener), flush=True)
    await serve_app(cast(Any, app), listener, drain=_at_once, stopped=asyncio.Event())


async def _at_once() -> None:
    """Nothing is finished first."""


if __name__ == "__main__":
    uvloop.run(main())
