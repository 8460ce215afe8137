"""One request over HTTP: send it, note when bytes arrive, never raise for what the server did.

Knows no schedule and no statistics. Times are read from the clock before anything is parsed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from benchmarks.dataset import BenchRequest
from benchmarks.sample import Sample
from benchmarks.stream import Answer, AnswerStream, StreamError, error_message

# Shorter than the 5 s after which uvicorn closes an idle connection: we never send into a closing
# one.
_KEEP_ALIVE_S = 4.0
_MAX_ERROR_BODY = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what all of them carry."""

    base_url: str
    endpoint: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    body: dict[str, Any] = field(default_factory=dict)  # sampling parameters, extra fields
    timeout_s: float = 600.0

    @property
    def is_chat(self) -> bool:
        return self.endpoint.rstrip("/").endswith("chat/completions")

    def url(self, endpoint: str) -> str:
        """`base_url` with and without a trailing /v1, as OpenAI's SDK and vLLM's tools want it."""
        base = self.base_url.rstrip("/")
        if endpoint.startswith("/v1/"):
            base = base.removesuffix("/v1")
        return base + endpoint

    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


class Unreachable(Exception):
    """Nothing answers at the address."""


def open_session(target: Target) -> aiohttp.ClientSession:
    """Connections are reused and not limited: only the schedule holds requests back."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=300)
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=target.headers())


async def list_models(session: aiohttp.ClientSession, target: Target) -> list[str]:
    """Names that the server offers; empty when it does not list any. Raises Unreachable."""
    url = target.url("/v1/models")
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=10.0)) as response:
            body = await response.read()
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        raise Unreachable(f"cannot reach {target.base_url}: {_reason(error, 10.0)}") from error
    try:
        return [row["id"] for row in msgspec.json.decode(body)["data"]]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return []


class Client:
    """Sends requests to one target. The session is the caller's."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        *,
        run_id: str,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._session = session
        self._target = target
        self._url = target.url(target.endpoint)
        self._run_id = run_id
        self._clock = clock

    async def send(self, request: BenchRequest, due_s: float, released_s: float) -> Sample:
        """The sample, whatever happens, except that cancellation passes through."""
        body = msgspec.json.encode(self._body(request))
        request_id = f"bench-{self._run_id}-{request.index}"
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        stream = AnswerStream()
        timing: str | None = None
        answer: Answer | None = None
        error: str | None = None
        sent_s = self._clock()
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                timing = response.headers.get("Server-Timing")
                await self._read(response, stream)
                answer = stream.finish(self._clock())
        except StreamError as failure:
            error = str(failure)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as failure:
            error = _reason(failure, self._target.timeout_s)
        now = self._clock()
        known = request.input_len or 0
        if answer is None:
            arrivals = stream.arrivals_so_far()
            return Sample(
                request.index, request_id, due_s, released_s, sent_s, now, arrivals,
                input_tokens=known, output_tokens=len(arrivals), wanted_tokens=request.output_len,
                is_counted=False, text=stream.text, server_timing=timing, error=error,
            )  # fmt: skip
        return Sample(
            request.index, request_id, due_s, released_s, sent_s, answer.end_s, answer.arrivals_s,
            answer.chunk_tokens,
            input_tokens=known if answer.input_tokens is None else answer.input_tokens,
            output_tokens=answer.output_tokens, wanted_tokens=request.output_len,
            is_counted=answer.is_counted, text=answer.text, finish_reason=answer.finish_reason,
            server_timing=timing,
        )  # fmt: skip

    async def _read(self, response: aiohttp.ClientResponse, stream: AnswerStream) -> None:
        if response.status != 200:
            body = await response.content.read(_MAX_ERROR_BODY)
            raise StreamError(f"HTTP {response.status}: {error_message(body)}")
        if response.content_type != "text/event-stream":
            raise StreamError(f"answer is {response.content_type}, not an event stream")
        async for received in response.content.iter_any():
            stream.feed(received, self._clock())

    def _body(self, request: BenchRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._target.model}
        if self._target.is_chat:
            body["messages"] = (
                request.prompt
                if request.is_messages
                else [{"role": "user", "content": request.prompt}]
            )
            body["max_completion_tokens"] = request.output_len
        else:
            body["prompt"] = request.prompt
            body["max_tokens"] = request.output_len
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        return {**body, **self._target.body}


def _reason(error: BaseException, timeout_s: float) -> str:
    """One short line that is the same for every request that failed the same way."""
    if isinstance(error, asyncio.TimeoutError):
        return f"no complete answer within {timeout_s:g} s"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "connection lost in mid-stream"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "server closed the connection without an answer"
    if isinstance(error, aiohttp.InvalidURL):
        return "not a valid URL"
    if isinstance(error, OSError) and error.errno is not None:
        return (os.strerror(error.errno) if error.errno > 0 else str(error)).lower()
    return f"{type(error).__name__}: {error}"[:200]
