"""The meaning of a streamed OpenAI answer: bytes and the times they came in; tokens, usage and
errors out.

Knows no socket and no clock, so any byte stream can be replayed through it.

A chunk is an arrival of tokens when it shows text (or reasoning, or a tool call), names token ids,
or its running usage rose. A chunk that shows nothing is a token whose text the server still holds
back (half a character, a special token), unless it only opens the message (a role) or closes it (a
finish reason): a closing chunk counts when the server's total says that exactly one token is
otherwise missing, and when it did not come together with the chunk before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from benchmarks.sse import SSEEvent, SSEParser


class StreamError(Exception):
    """The answer is an error, or no answer at all. The message is the reason in the report."""


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Arrival(NamedTuple):
    at_s: float
    tokens: int | None  # None: the server does not say
    is_visible: bool
    is_last: bool  # carries the finish reason


class Answer(NamedTuple):
    """A complete answer; without `chunk_tokens` unless the server told them for every chunk."""

    arrivals_s: tuple[float, ...]
    chunk_tokens: tuple[int, ...]
    end_s: float
    input_tokens: int | None
    output_tokens: int
    is_counted: bool
    text: str
    finish_reason: str | None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class AnswerStream:
    """Feed it what arrives; then `finish()` gives the answer. Both raise StreamError."""

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._arrivals: list[_Arrival] = []
        self._texts: list[str] = []
        self._end_s: float | None = None
        self._input_tokens: int | None = None
        self._output_tokens: int | None = None
        self._finish_reason: str | None = None
        self._is_done = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, received: bytes, now: float) -> None:
        for event in self._parser.feed(received):
            self._take(event, now)

    def arrivals_so_far(self) -> tuple[float, ...]:
        """For a stream that broke: when its visible chunks came."""
        return tuple(arrival.at_s for arrival in self._arrivals if arrival.is_visible)

    def finish(self, now: float) -> Answer:
        """The connection ended in order."""
        for event in self._parser.close():
            self._take(event, now)
        if not (self._is_done or self._finish_reason):
            raise StreamError("stream ended without a finish reason or [DONE]")
        counted = _token_arrivals(self._arrivals, self._output_tokens)
        if not counted:
            raise StreamError("answer without any token")
        tokens = [arrival.tokens for arrival in counted if arrival.tokens is not None]
        is_exact = len(tokens) == len(counted)
        total = self._output_tokens
        if total is None and is_exact:
            total = sum(tokens)
        return Answer(
            arrivals_s=tuple(arrival.at_s for arrival in counted),
            chunk_tokens=tuple(tokens) if is_exact else (),
            end_s=counted[-1].at_s if self._end_s is None else self._end_s,
            input_tokens=self._input_tokens,
            output_tokens=len(counted) if total is None else total,
            is_counted=total is not None,
            text=self.text,
            finish_reason=self._finish_reason,
        )

    def _take(self, event: SSEEvent, now: float) -> None:
        if event.data == b"[DONE]":
            self._is_done = True
            return
        if event.name == "error":
            raise StreamError(f"error event: {error_message(event.data)}")
        try:
            chunk = _decode_chunk(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StreamError("chunk is not JSON of the OpenAI form") from None
        if chunk.error is not None:
            raise StreamError(f"error event: {_message(chunk.error)}")
        tokens = self._count(chunk.usage)
        if self._arrivals and self._arrivals[-1].tokens is None:
            tokens = None  # usage came once, for the whole answer: it says nothing of this chunk
        for choice in chunk.choices or ():
            self._end_s = now
            self._choose(choice, tokens, now)

    def _count(self, usage: _Usage | None) -> int | None:
        """Tokens since the last usage: those of this chunk, if every chunk brings its usage."""
        if usage is None:
            return None
        if usage.prompt_tokens is not None:
            self._input_tokens = usage.prompt_tokens
        if usage.completion_tokens is None:
            return None
        rise = usage.completion_tokens - (self._output_tokens or 0)
        self._output_tokens = usage.completion_tokens
        return rise

    def _choose(self, choice: _Choice, tokens: int | None, now: float) -> None:
        shown = choice.text or ""
        opens = False
        calls = False
        if (delta := choice.delta) is not None:
            shown = delta.content or delta.reasoning or delta.reasoning_content or ""
            opens = delta.role is not None
            calls = bool(delta.tool_calls)
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
        if shown:
            self._texts.append(shown)
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
        is_visible = bool(shown) or calls
        is_last = choice.finish_reason is not None
        if is_visible or tokens or not opens:
            self._arrivals.append(_Arrival(now, tokens, is_visible, is_last))


def _token_arrivals(arrivals: list[_Arrival], total: int | None) -> list[_Arrival]:
    """The arrivals that carried tokens, by the rule at the top."""
    counted = [a for a in arrivals if a.is_visible or (a.tokens != 0 and not _only_closes(a))]
    closing = [a for a in arrivals if _only_closes(a)]
    if (
        total == len(counted) + 1
        and closing
        and (not counted or closing[0].at_s > counted[-1].at_s)
    ):
        counted.append(closing[0])
    return counted


def _only_closes(arrival: _Arrival) -> bool:
    return arrival.is_last and not arrival.is_visible and arrival.tokens is None


def error_message(body: bytes) -> str:
    """The message inside an OpenAI error body, or the body itself, in one short line."""
    try:
        return _message(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _message(body.decode("utf-8", "replace"))


def _message(found: Any) -> str:
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:200]
