"""`xpyd up --demo`: a few real requests through the proxy, their answers, and where the TTFT
went.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp

TIMEOUT_S = 60.0


async def run(url: str, model: str, api_key: str | None) -> int:
    """0 if every request was answered with text, else 1."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            await _chat(session, url, model, "What is the capital of France?")
            await _streamed_chat(session, url, model, "Who wrote Hamlet?")
            await _completion(session, url, model, "The capital of Japan is")
    except (aiohttp.ClientError, asyncio.TimeoutError, _NoAnswer) as error:
        print(f"demo failed: {error or type(error).__name__}")
        return 1
    return 0


class _NoAnswer(Exception):
    pass


async def _chat(session: aiohttp.ClientSession, url: str, model: str, question: str) -> None:
    body = {"model": model, "messages": _user(question), "max_tokens": 64, "temperature": 0}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        text = (await _json(answer))["choices"][0]["message"]["content"]
        _show("chat", question, text)
        print(f"   {_waterfall(answer)}\n", flush=True)


async def _streamed_chat(
    session: aiohttp.ClientSession, url: str, model: str, question: str
) -> None:
    body = {
        "model": model,
        "messages": _user(question),
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
    }
    began = time.monotonic()
    first = 0.0
    pieces: list[str] = []
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            await _json(answer)
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise _NoAnswer(event["error"]["message"])
            if piece := event["choices"][0]["delta"].get("content"):
                first = first or time.monotonic()
                pieces.append(piece)
        _show("streamed chat", question, "".join(pieces))
        print(f"   first text after {(first - began) * 1e3:.0f} ms, in {len(pieces)} pieces")
        print(f"   {_waterfall(answer)}\n", flush=True)


async def _completion(session: aiohttp.ClientSession, url: str, model: str, prompt: str) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "stop": "."}
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        _show("completion", prompt, (await _json(answer))["choices"][0]["text"])
        print(f"   {_waterfall(answer)}\n", flush=True)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def _json(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    body: dict[str, Any] = await answer.json()
    if answer.status != 200:
        raise _NoAnswer(f"status {answer.status}: {body.get('error', {}).get('message')}")
    return body


def _show(kind: str, asked: str, text: str) -> None:
    if not text.strip():
        raise _NoAnswer(f"the {kind} was answered with no text")
    print(f"── {kind}\n   > {asked}\n   < {text.strip()}")


def _waterfall(answer: aiohttp.ClientResponse) -> str:
    """`Server-Timing: queue;dur=1.2, prefill;dur=30` → `TTFT: queue 1.2 ms · prefill 30.0 ms`."""
    parts = []
    for entry in answer.headers.get("Server-Timing", "").split(","):
        name, _, duration = entry.strip().partition(";dur=")
        if duration:
            parts.append(f"{name} {float(duration):.1f} ms")
    return "TTFT: " + (" · ".join(parts) if parts else "no timings reported")
