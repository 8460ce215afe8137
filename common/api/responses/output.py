"""An answer as output items, and the events by which a stream tells of them, in their order.

    message    output_item.added, content_part.added, output_text.delta …, output_text.done,
               content_part.done, output_item.done
    reasoning  the same with reasoning_text
    call       output_item.added, function_call_arguments.delta …, .done, output_item.done

One item is open at a time. Knows nothing of tokens, responses and their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.api.responses.items import (
    CallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    new_id,
)

Event = dict[str, Any]  # without its sequence number


@dataclass(frozen=True, slots=True)
class TextGain:
    text: str
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningGain:
    text: str


@dataclass(frozen=True, slots=True)
class CallGain:
    """`name` and `call_id` once, at the start of a call."""

    arguments: str = ""
    name: str | None = None
    call_id: str | None = None


Gain = TextGain | ReasoningGain | CallGain


def join(gains: Sequence[Gain]) -> list[Gain]:
    """The same gains in as few pieces as there are parts."""
    joined: list[Gain] = []
    for gain in gains:
        last = joined[-1] if joined else None
        if isinstance(gain, TextGain) and isinstance(last, TextGain):
            joined[-1] = TextGain(last.text + gain.text, last.logprobs + gain.logprobs)
        elif isinstance(gain, ReasoningGain) and isinstance(last, ReasoningGain):
            joined[-1] = ReasoningGain(last.text + gain.text)
        elif isinstance(gain, CallGain) and gain.name is None and isinstance(last, CallGain):
            joined[-1] = CallGain(last.arguments + gain.arguments, last.name, last.call_id)
        else:
            joined.append(gain)
    return joined


class Output:
    """`items`: those that have ended."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._open: _OpenText | _OpenCall | None = None

    def add(self, gain: Gain) -> list[Event]:
        if isinstance(gain, CallGain):
            return self._add_call(gain)
        kind = "message" if isinstance(gain, TextGain) else "reasoning"
        events: list[Event] = []
        if not isinstance(self._open, _OpenText) or self._open.kind != kind:
            events += self.close("completed")
            self._open = _OpenText(len(self.items), kind)
            events += self._open.begin()
        logprobs = gain.logprobs if isinstance(gain, TextGain) else ()
        return events + self._open.add(gain.text, logprobs)

    def _add_call(self, gain: CallGain) -> list[Event]:
        events: list[Event] = []
        if gain.name is not None:
            events += self.close("completed")
            self._open = _OpenCall(len(self.items), gain.name, gain.call_id or new_id("call"))
            events += self._open.begin()
        assert isinstance(self._open, _OpenCall)
        return events + self._open.add(gain.arguments)

    def close(self, status: Status) -> list[Event]:
        """End the open item, if there is one."""
        if self._open is None:
            return []
        item, events = self._open.end(status)
        self.items.append(item)
        self._open = None
        return events

    def snapshot(self) -> list[Item]:
        """All items so far, the open one with what it has."""
        if self._open is None:
            return list(self.items)
        return [*self.items, self._open.end("in_progress")[0]]


class _OpenText:
    """A message or a reasoning item: one part of text each."""

    def __init__(self, index: int, kind: str) -> None:
        self.kind = kind
        self._name = "output_text" if kind == "message" else "reasoning_text"
        self._place = {"item_id": new_id("msg" if kind == "message" else "rs")}
        self._index = {"output_index": index}
        self._part_place = {**self._place, **self._index, "content_index": 0}
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> list[Event]:
        item = self._item([], "in_progress")
        part = self._part("", [])
        return [
            {"type": "response.output_item.added", **self._index, "item": item},
            {"type": "response.content_part.added", **self._part_place, "part": part},
        ]

    def add(self, text: str, logprobs: Sequence[dict[str, Any]]) -> list[Event]:
        if not text and not logprobs:
            return []
        self._texts.append(text)
        self._logprobs += logprobs
        event = {"type": f"response.{self._name}.delta", **self._part_place, "delta": text}
        return [self._with_logprobs(event, logprobs)]

    def end(self, status: Status) -> tuple[Item, list[Event]]:
        text = "".join(self._texts)
        part = self._part(text, self._logprobs)
        item = self._item([part], status)
        done = {"type": f"response.{self._name}.done", **self._part_place, "text": text}
        return item, [
            self._with_logprobs(done, self._logprobs),
            {"type": "response.content_part.done", **self._part_place, "part": part},
            {"type": "response.output_item.done", **self._index, "item": item},
        ]

    def _with_logprobs(self, event: Event, logprobs: Sequence[dict[str, Any]]) -> Event:
        return {**event, "logprobs": logprobs} if self.kind == "message" else event

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> OutputText | ReasoningText:
        if self.kind == "message":
            return OutputText(text, [], list(logprobs))
        return ReasoningText(text)

    def _item(self, parts: list[OutputText | ReasoningText], status: Status) -> Item:
        item_id = self._place["item_id"]
        if self.kind == "message":
            texts = [part for part in parts if isinstance(part, OutputText)]
            return MessageItem(item_id, "assistant", [*texts], status)
        thoughts = [part for part in parts if isinstance(part, ReasoningText)]
        return ReasoningItem(item_id, [], thoughts, status)


class _OpenCall:
    def __init__(self, index: int, name: str, call_id: str) -> None:
        self._index = {"output_index": index}
        self._id = new_id("fc")
        self._name = name
        self._call_id = call_id
        self._arguments: list[str] = []

    def begin(self) -> list[Event]:
        item = self._item("in_progress")
        return [{"type": "response.output_item.added", **self._index, "item": item}]

    def add(self, arguments: str) -> list[Event]:
        if not arguments:
            return []
        self._arguments.append(arguments)
        return [
            {
                "type": "response.function_call_arguments.delta",
                "item_id": self._id,
                **self._index,
                "delta": arguments,
            }
        ]

    def end(self, status: Status) -> tuple[Item, list[Event]]:
        item = self._item(status)
        return item, [
            {
                "type": "response.function_call_arguments.done",
                "item_id": self._id,
                **self._index,
                "name": self._name,
                "arguments": item.arguments,
            },
            {"type": "response.output_item.done", **self._index, "item": item},
        ]

    def _item(self, status: Status) -> CallItem:
        return CallItem(self._id, self._call_id, self._name, "".join(self._arguments), status)
