"""An answer as Anthropic's content blocks: opened, filled by deltas, closed, one at a time.

The events of a stream are the only form; a whole answer is put together from them, so the two
cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from common.api.tools.deltas import CallDelta, ContentDelta, Delta

Event = dict[str, Any]


class BlockWriter:
    """Deltas of an answer in, events out."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._num_blocks = 0
        self._open = ""  # type of the block that is open

    def add(self, delta: Delta) -> list[Event]:
        if isinstance(delta, CallDelta):
            return self._call(delta)
        if isinstance(delta, ContentDelta):
            change = {"type": "text_delta", "text": delta.text}
            return [*self._in("text", {"text": ""}), self._change(change)]
        change = {"type": "thinking_delta", "thinking": delta.text}
        return [*self._in("thinking", {"thinking": "", "signature": ""}), self._change(change)]

    def close(self) -> list[Event]:
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._num_blocks - 1}]

    def _call(self, delta: CallDelta) -> list[Event]:
        events: list[Event] = []
        if delta.name is not None:
            self.num_calls += 1
            start: Event = {"id": delta.call_id, "name": delta.name, "input": {}}
            events = [*self.close(), self._start("tool_use", start)]
        if delta.arguments:
            change = {"type": "input_json_delta", "partial_json": delta.arguments}
            events.append(self._change(change))
        return events

    def _in(self, kind: str, empty: Event) -> list[Event]:
        """What it takes until a block of this kind is open."""
        return [] if self._open == kind else [*self.close(), self._start(kind, empty)]

    def _start(self, kind: str, empty: Event) -> Event:
        self._open = kind
        self._num_blocks += 1
        block = {"type": kind, **empty}
        return {
            "type": "content_block_start",
            "index": self._num_blocks - 1,
            "content_block": block,
        }

    def _change(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}


def content_of(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The blocks that a stream of these events ends with."""
    blocks: list[dict[str, Any]] = []
    pieces: list[str] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
            pieces = []
        elif event["type"] == "content_block_delta":
            pieces += [value for name, value in event["delta"].items() if name != "type"]
        elif event["type"] == "content_block_stop":
            _fill(blocks[-1], "".join(pieces))
    return blocks


def _fill(block: dict[str, Any], text: str) -> None:
    if block["type"] == "tool_use":
        block["input"] = _object(text)
    else:
        block[block["type"]] = text


def _object(text: str) -> dict[str, Any]:
    """{} for arguments that max_tokens cut short: `stop_reason` tells of it."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
