"""transformers' `generate` behind /v1/completions, so that one client measures all sides.

No server anyone would run: requests that wait when a batch begins, with prompts and answers of
equal length, make one batch, and whoever comes later waits for its end. That is `generate`.
Knows greedy streams of token ids and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

GATHER_S = 0.01  # for those who come at the same time


@dataclass
class Ask:
    prompt: list[int]
    max_tokens: int
    tokens: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)  # None: the end


class Rows(BaseStreamer):
    """Each step's tokens to those who asked, from generate's thread."""

    def __init__(self, asks: list[Ask], loop: asyncio.AbstractEventLoop) -> None:
        self._asks = asks
        self._loop = loop
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:  # generate shows it first
            self._is_prompt = False
            return
        self._loop.call_soon_threadsafe(self._give, value.flatten().tolist())

    def end(self) -> None:
        ends: list[int | None] = [None] * len(self._asks)
        self._loop.call_soon_threadsafe(self._give, ends)

    def _give(self, tokens: list[int | None]) -> None:
        for ask, token in zip(self._asks, tokens, strict=True):
            ask.tokens.put_nowait(token)


class Server:
    def __init__(self, path: str) -> None:
        self._name = path
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        self._waiting: list[Ask] = []
        self._news = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        app.on_startup.append(self._begin)
        return app

    async def _begin(self, app: web.Application) -> None:
        self._running = asyncio.create_task(self._run())

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self._name}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        ask = Ask(body["prompt"], body["max_tokens"])
        self._waiting.append(ask)
        self._news.set()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while (token := await ask.tokens.get()) is not None:
            text = self._tokenizer.decode([token])
            await response.write(_event({"choices": [{"index": 0, "text": text}]}))
        usage = {"prompt_tokens": len(ask.prompt), "completion_tokens": ask.max_tokens}
        ending: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        await response.write(_event({"choices": [ending]}))
        await response.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
            first = self._waiting[0]
            size = len(first.prompt), first.max_tokens
            batch = [ask for ask in self._waiting if (len(ask.prompt), ask.max_tokens) == size]
            self._waiting = [ask for ask in self._waiting if ask not in batch]
            if not self._waiting:
                self._news.clear()
            await asyncio.to_thread(self._generate, batch, asyncio.get_running_loop())

    def _generate(self, asks: list[Ask], loop: asyncio.AbstractEventLoop) -> None:
        prompts = torch.tensor([ask.prompt for ask in asks])
        count = asks[0].max_tokens
        with torch.inference_mode():
            self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                streamer=Rows(asks, loop),
            )


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="transformers' generate over HTTP.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    web.run_app(Server(options.model).app(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
