"""One choice's text as the parts of a message: reasoning, content and tool calls, as it comes.

reader = dialect.reader(prompt_end, names)
for piece in pieces:
    for delta in reader.push(piece.text, piece.text_offsets): …
… reader.finish()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.api.reasoning.parser import ReasoningParser
from common.api.tools.deltas import ContentDelta, Delta, ReasoningDelta
from common.api.tools.parser import ToolCallParser


class MessageReader:
    def __init__(self, reasoning: ReasoningParser | None, calls: ToolCallParser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls if self._calls else 0

    @property
    def num_reasoning_tokens(self) -> int:
        return self._reasoning.num_tokens if self._reasoning else 0

    def push(self, text: str, offsets: Sequence[int] = ()) -> list[Delta]:
        """`offsets`: per token of this piece, the characters of the answer before it."""
        if self._reasoning is None:
            return self._content(text)
        return self._behind(self._reasoning.push(text, offsets))

    def finish(self) -> list[Delta]:
        deltas = self._behind(self._reasoning.finish()) if self._reasoning else []
        return [*deltas, *self._calls.finish()] if self._calls else deltas

    def _behind(self, deltas: Sequence[ReasoningDelta | ContentDelta]) -> list[Delta]:
        found: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, ContentDelta):
                found += self._content(delta.text)
            else:
                found.append(delta)
        return found

    def _content(self, text: str) -> list[Delta]:
        if self._calls is not None:
            return [*self._calls.push(text)]
        return [ContentDelta(text)] if text else []


@dataclass(slots=True)
class MessageParts:
    """The sum of an answer's deltas."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)  # as chat completions show them

    def add(self, delta: Delta) -> None:
        if isinstance(delta, ContentDelta):
            self.content += delta.text
        elif isinstance(delta, ReasoningDelta):
            self.reasoning += delta.text
        elif delta.name is not None:
            function = {"name": delta.name, "arguments": delta.arguments}
            self.calls.append({"id": delta.call_id, "type": "function", "function": function})
        else:
            self.calls[-1]["function"]["arguments"] += delta.arguments
