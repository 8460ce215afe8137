"""What a reader of a model's text gives out: pieces of the answer, in order. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """`name` and `call_id` once, at the start of a call; `arguments` in pieces."""

    index: int
    arguments: str = ""
    name: str | None = None
    call_id: str | None = None

    def body(self) -> dict[str, object]:
        """As chat completions stream it."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        return {
            "index": self.index,
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


ToolDelta = ContentDelta | CallDelta
Delta = ReasoningDelta | ContentDelta | CallDelta
