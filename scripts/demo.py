"""`xpyd up --demo`: a few real requests through the proxy, their answers, and where the TTFT
went.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import aiohttp

from common.waterfall import DECODE_QUEUE, EXPOSED, FIRST_STEP, HANDOVER, TO_FIRST, TTFT

TIMEOUT_S = 60.0
_BAR = 40


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
        print(f"{_waterfall(_told(answer))}\n", flush=True)


async def _streamed_chat(
    session: aiohttp.ClientSession, url: str, model: str, question: str
) -> None:
    body = {
        "model": model,
        "messages": _user(question),
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    first = 0.0
    pieces: list[str] = []
    timings: dict[str, float] = {}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            await _json(answer)
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise _NoAnswer(event["error"]["message"])
            timings = event.get("timings", timings)
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    first = first or time.monotonic()
                    pieces.append(piece)
        _show("streamed chat", question, "".join(pieces))
        print(f"   first text after {(first - began) * 1e3:.0f} ms, in {len(pieces)} pieces")
        print(_waterfall({name[:-3]: ms for name, ms in timings.items() if name.endswith("_ms")}))
        blocks, size = timings.get("kv_blocks", 0), timings.get("kv_bytes", 0)
        print(f"   {blocks:.0f} KV blocks, {size / 1e6:.2f} MB\n", flush=True)


async def _completion(session: aiohttp.ClientSession, url: str, model: str, prompt: str) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "stop": "."}
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        _show("completion", prompt, (await _json(answer))["choices"][0]["text"])
        print(f"{_waterfall(_told(answer))}\n", flush=True)


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


def _told(answer: aiohttp.ClientResponse) -> dict[str, float]:
    """Milliseconds by stage: `Server-Timing: route;dur=1.2, transfer;dur=3;desc="…"`."""
    entries = re.findall(r"(\w+);dur=([\d.]+)", answer.headers.get("Server-Timing", ""))
    return {name: float(ms) for name, ms in entries}


def _waterfall(spent: dict[str, float]) -> str:
    """One line per stage, each bar beginning where the one before ended."""
    if TTFT not in spent:
        return "   TTFT: no timings reported"
    lines = [f"   TTFT: {spent[TTFT]:.1f} ms"]
    lines += _bars({name: spent[name] for name in TO_FIRST if name in spent}, spent[TTFT])
    if HANDOVER in spent:
        lines.append(f"   then to the second token {spent[HANDOVER]:.1f} ms")
        names = (EXPOSED, DECODE_QUEUE, FIRST_STEP)
        lines += _bars({name: spent[name] for name in names if name in spent}, spent[HANDOVER])
    return "\n".join(lines)


def _bars(spent: dict[str, float], whole: float) -> list[str]:
    lines, before = [], 0.0
    for name, ms in spent.items():
        begin, end = (round(_BAR * min(1.0, at / whole)) for at in (before, before + ms))
        bar = " " * begin + ("█" * (end - begin) or "▏")
        lines.append(f"     {name:<17}{ms:>9.2f} ms  {bar}")
        before += ms
    return lines
