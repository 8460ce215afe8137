"""What the model says as Anthropic's message: whole, or as the events of a stream."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from common.api.anthropic.blocks import BlockWriter, Event, content_of
from common.api.anthropic.errors import messages_error_body
from common.api.choices import Piece
from common.api.generation import Generation, Usage
from common.api.message import MessageReader
from common.api.sse import encode_json
from common.errors import XpydError

log = logging.getLogger(__name__)

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class MessageAnswer:
    def __init__(self, generation: Generation, reader: MessageReader, request_id: str) -> None:
        self._generation = generation
        self._reader = reader
        self._request_id = request_id  # for the log
        self._blocks = BlockWriter()
        self._id = f"msg_{uuid.uuid4().hex[:24]}"

    async def complete(self) -> dict[str, Any]:
        events: list[Event] = []
        ending: dict[str, Any] = {}
        async with aclosing(self._generation.pieces()) as pieces:
            async for piece in pieces:
                events += self._read(piece)
                if piece.finish_reason:
                    ending = self._ending(piece)
        return {**self._message(content_of(events)), **ending}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Encoded events. An error before the first of them is raised, later it is the last one."""
        has_begun = False
        try:
            async with aclosing(self._generation.pieces()) as pieces:
                async for piece in pieces:
                    events = [] if has_begun else [self._start()]
                    events += self._read(piece)
                    if piece.finish_reason:
                        events += self._end(piece)
                    has_begun = True
                    yield b"".join(map(_encode, events))
        except XpydError as error:
            if not has_begun:
                raise
            yield _encode_error(error)
        except Exception:
            if not has_begun:
                raise
            log.exception("stream failed request_id=%s", self._request_id)
            yield _encode_error(XpydError("the server failed to continue this answer"))

    def _read(self, piece: Piece) -> list[Event]:
        deltas = self._reader.push(piece.text, piece.text_offsets)
        if piece.finish_reason:
            deltas += self._reader.finish()
        events = [event for delta in deltas for event in self._blocks.add(delta)]
        return events + self._blocks.close() if piece.finish_reason else events

    def _start(self) -> Event:
        return {"type": "message_start", "message": self._message([])}

    def _end(self, piece: Piece) -> list[Event]:
        usage = _usage(self._generation.usage)
        delta = {"type": "message_delta", "delta": self._ending(piece), "usage": usage}
        return [delta, {"type": "message_stop"}]

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._generation.card.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self._generation.usage),
        }

    def _ending(self, piece: Piece) -> dict[str, Any]:
        assert piece.finish_reason is not None
        if isinstance(piece.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": piece.stop_reason}
        reason = _STOP_REASONS[piece.finish_reason]
        if reason == "end_turn" and self._blocks.num_calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Theirs counts the prompt in parts: what the cache had, and the rest."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _encode(event: Event) -> bytes:
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\ndata: " + encode_json(event) + b"\n\n"


def _encode_error(error: XpydError) -> bytes:
    return b"event: error\ndata: " + messages_error_body(error) + b"\n\n"
