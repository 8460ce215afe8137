"""A stand-in for a model server: OpenAI's streams with delays that are known, to test what measures
them.

Knows no model. Token k of an answer is due `ttft + k * itl` after the request came in, on an
absolute schedule, so that the server's own lateness does not add up. Faults and jitter are drawn
from the seed and the order of arrival.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

from aiohttp import web

FAULTS = ("none", "http500", "cut", "error-event", "no-usage", "hang")


@dataclass(frozen=True, slots=True)
class Delays:
    ttft_s: float
    itl_s: float
    jitter_s: float = 0.0  # each token's due time moves by up to this much either way
    tokens_per_chunk: int = 1
    slots: int | None = None  # answers at once; others wait in line before their TTFT starts
    fault: str = "none"
    fault_rate: float = 1.0
    seed: int = 0


class StandIn:
    def __init__(self, delays: Delays) -> None:
        self._delays = delays
        self._arrived = 0
        self._gate = asyncio.Semaphore(delays.slots) if delays.slots else contextlib.nullcontext()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"arrived": self._arrived})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "stand-in"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        arrived_s = monotonic()
        draw = random.Random(f"{self._delays.seed}/{self._arrived}")
        self._arrived += 1
        fault = self._delays.fault if draw.random() < self._delays.fault_rate else "none"
        body = await request.json()
        if fault == "http500":
            return web.json_response({"error": {"message": "told to fail"}}, status=500)
        async with self._gate:
            start_s = monotonic() if self._delays.slots else arrived_s
            return await self._stream(request, body, draw, start_s, fault)

    async def _stream(
        self, request: web.Request, body: Any, draw: random.Random, start_s: float, fault: str
    ) -> web.StreamResponse:
        is_chat = request.path.endswith("chat/completions")
        total = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if is_chat:
            await response.write(_event(_chat({"role": "assistant", "content": ""})))
        for first, count in _chunks(total, self._delays.tokens_per_chunk):
            if fault in ("cut", "error-event", "hang") and first >= total // 2:
                return await self._break(request, response, fault)
            await self._wait_for(first + count - 1, start_s, draw)
            text, is_last = "token " * count, first + count == total
            reason = "length" if is_last else None
            chunk = _chat({"content": text}, reason) if is_chat else _completion(text, reason)
            await response.write(_event(chunk))
        if fault != "no-usage":
            usage = {"prompt_tokens": _prompt_tokens(body), "completion_tokens": total}
            await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _wait_for(self, token: int, start_s: float, draw: random.Random) -> None:
        jitter_s = draw.uniform(-1, 1) * self._delays.jitter_s
        due_s = start_s + self._delays.ttft_s + token * self._delays.itl_s + jitter_s
        await asyncio.sleep(max(0.0, due_s - monotonic()))

    async def _break(
        self, request: web.Request, response: web.StreamResponse, fault: str
    ) -> web.StreamResponse:
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "error-event":
            await response.write(_event({"error": {"message": "told to fail in mid-stream"}}))
            await response.write_eof()
        elif request.transport is not None:
            request.transport.abort()
        return response


def _chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(index of the first token, number of tokens) of each chunk; the first chunk has one token."""
    yield 0, 1
    for first in range(1, total, size):
        yield first, min(size, total - first)


def _completion(text: str, reason: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def _chat(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _prompt_tokens(body: Any) -> int:
    """Token ids are counted; text by its words."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    text = prompt or " ".join(str(m.get("content")) for m in body.get("messages", ()))
    return len(text.split())


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def _listen(delays: Delays, port: int) -> None:
    runner = web.AppRunner(StandIn(delays).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=1.0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"listening on http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one; it is printed")
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=50.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--slots", type=int, help="answers at once; default: no limit")
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--fault-rate", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    delays = Delays(
        args.ttft_ms / 1000.0, args.itl_ms / 1000.0, args.jitter_ms / 1000.0,
        args.tokens_per_chunk, args.slots, args.fault, args.fault_rate, args.seed,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_listen(delays, args.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
