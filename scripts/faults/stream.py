"""One streamed answer: what it said, how it ended, and its longest pause.

What counts is what the client is told, not how it was cut into chunks: the text, logprobs and
finish reason of each choice, and the usage. Ids, times and cache hits are left out.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from scripts.faults.workload import Job


@dataclass(slots=True)
class Answer:
    job: str
    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    status: int = 0
    error: str = ""  # of an accepted stream; or why there was none
    is_done: bool = False
    num_pieces: int = 0
    first_s: float = 0.0  # from asking to the first piece
    gap_s: float = 0.0  # longest pause between two pieces

    @property
    def is_refused(self) -> bool:
        """Turned away before acceptance, properly."""
        return self.status in (429, 503)

    @property
    def is_complete(self) -> bool:
        return self.is_done and not self.error

    def text(self, index: int = 0) -> str:
        return str(self.choices.get(index, {}).get("text", ""))

    def said(self) -> bytes:
        """Everything that must not depend on what broke."""
        return json.dumps([self.choices, self.usage], sort_keys=True).encode()

    def is_prefix_of(self, whole: Answer) -> bool:
        """Is all that was said what the whole answer says?"""
        return all(whole.text(index).startswith(self.text(index)) for index in self.choices)

    def take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = str(chunk["error"].get("message", chunk["error"]))
        if usage := chunk.get("usage"):
            self.usage = {k: usage[k] for k in ("prompt_tokens", "completion_tokens")}
        for piece in chunk.get("choices", ()):
            choice = self.choices.setdefault(
                piece["index"], {"text": "", "logprobs": [], "finish": None, "stop": None}
            )
            delta = piece.get("delta") or {}
            choice["text"] += piece.get("text") or delta.get("content") or ""
            if logprobs := piece.get("logprobs"):
                choice["logprobs"] += _rows(logprobs)
            choice["finish"] = piece.get("finish_reason") or choice["finish"]
            choice["stop"] = piece.get("stop_reason") or choice["stop"]


async def play(
    session: aiohttp.ClientSession,
    url: str,
    job: Job,
    *,
    timeout_s: float,
    running: asyncio.Event | None = None,
    hang_up_after: int | None = None,
) -> Answer:
    """Ask and read to the end, or for `hang_up_after` pieces. `running` is set at the third piece
    that carries something, and at the end. Raises nothing of the network: it is in the answer."""
    answer = Answer(job.name)
    try:
        await asyncio.wait_for(_play(session, url, job, answer, running, hang_up_after), timeout_s)
    except asyncio.TimeoutError:
        answer.error = f"no end within {timeout_s:.0f} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    finally:
        if running is not None:
            running.set()
    return answer


async def _play(
    session: aiohttp.ClientSession,
    url: str,
    job: Job,
    answer: Answer,
    running: asyncio.Event | None,
    hang_up_after: int | None,
) -> None:
    asked = last = time.monotonic()
    async with session.post(url + job.path, json=job.body) as response:
        answer.status = response.status
        if response.status != 200:
            answer.error = (await response.text())[:300]
            return
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if answer.num_pieces:
                answer.gap_s = max(answer.gap_s, now - last)
            else:
                answer.first_s = now - asked
            last = now
            if line.startswith(b"data: [DONE]"):
                answer.is_done = True
                return
            answer.num_pieces += 1
            answer.take(json.loads(line[6:]))
            if running is not None and answer.num_pieces == 3:
                running.set()
            if answer.num_pieces == hang_up_after:
                response.close()
                return
    if not answer.error:
        answer.error = "the stream ended without [DONE]"


def _rows(logprobs: dict[str, Any]) -> list[Any]:
    """Chat: one object per token. Completions: parallel lists, offsets left out."""
    if "content" in logprobs:
        return list(logprobs["content"] or ())
    names = ("tokens", "token_logprobs", "top_logprobs")
    return [list(row) for row in zip(*(logprobs[name] for name in names), strict=True)]
