"""Items, the currency of /v1/responses: what goes in, what comes out, and both as chat messages.

Input is decoded here, once; from then on an item is one of four frozen structs, which encode to the
JSON that clients see.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from common.api.protocol import FunctionCall as ChatCall
from common.api.protocol import Message, ToolCall
from common.errors import BadRequest

MAX_ITEMS = 4096  # of a whole conversation
_MAX_ID_CHARS = 128

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class Refusal(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    text: str


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    role: Literal["user", "assistant", "system", "developer"]
    content: list[InputText | OutputText | Refusal]
    status: Status = "completed"

    @property
    def text(self) -> str:
        return "\n".join(
            part.refusal if isinstance(part, Refusal) else part.text for part in self.content
        )


class CallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class CallOutputItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    id: str
    call_id: str
    output: str | list[InputText]
    status: Status = "completed"

    @property
    def text(self) -> str:
        if isinstance(self.output, str):
            return self.output
        return "\n".join(part.text for part in self.output)


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    id: str
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    status: Status = "completed"

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content or self.summary)


Item = MessageItem | CallItem | CallOutputItem | ReasoningItem

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


# --- reading -------------------------------------------------------------------------------------


def read_input(given: Any, find: Callable[[str], Item | None]) -> list[Item]:
    """The items of `input`; `find` knows those that may be referred to. Raises BadRequest."""
    if given is None:
        return []
    if isinstance(given, str):
        return [MessageItem(new_id("msg"), "user", [InputText(given)])]
    if not isinstance(given, list):
        raise BadRequest("input: must be a string or a list of items", "input")
    if len(given) > MAX_ITEMS:
        raise BadRequest(f"input: at most {MAX_ITEMS} items are allowed", "input")
    items: dict[str, Item] = {}
    for n, raw in enumerate(given):
        item = _read(raw, f"input[{n}]", find)
        if item.id in items:  # cursors of pages would go round in circles
            raise BadRequest(f"input[{n}].id: {item.id!r} is there twice", f"input[{n}].id")
        items[item.id] = item
    return list(items.values())


def _read(raw: Any, where: str, find: Callable[[str], Item | None]) -> Item:
    if not isinstance(raw, dict):
        raise BadRequest(f"{where}: must be an object", where)
    fields = {name: value for name, value in raw.items() if value is not None}
    kind = fields.setdefault("type", "message" if "role" in fields else "item_reference")
    if kind == "item_reference":
        found = find(str(fields.get("id")))
        if found is None:
            raise BadRequest(f"{where}.id: there is no stored item of this id", f"{where}.id")
        return found
    if not isinstance(kind, str) or kind not in _PREFIXES:
        raise BadRequest(
            f"{where}.type: items of type {str(kind)[:64]!r} are not supported", f"{where}.type"
        )
    if kind == "message":
        _normalize_content(fields)
    fields.setdefault("id", new_id(_PREFIXES[kind]))
    item = _convert(fields, where)
    if not 0 < len(item.id) <= _MAX_ID_CHARS:
        raise BadRequest(f"{where}.id: must have 1 to {_MAX_ID_CHARS} characters", f"{where}.id")
    return item


def _normalize_content(fields: dict[str, Any]) -> None:
    """A plain string becomes one part; parts are named by who speaks."""
    content = fields.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        return
    is_ours = fields.get("role") == "assistant"
    given, wanted = ("input_text", "output_text") if is_ours else ("output_text", "input_text")
    fields["content"] = [
        {**part, "type": wanted}
        if isinstance(part, dict) and part.get("type") in ("text", given)
        else part
        for part in parts
    ]


def _convert(fields: dict[str, Any], where: str) -> Item:
    try:
        item: Item = msgspec.convert(fields, Item)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = where + path.rstrip("`")
        if value := re.fullmatch(r"Invalid value ('.*')", message):
            message = f"{value[1][:80]} is not supported here"
        raise BadRequest(f"{param}: {message}", param) from None
    return item


# --- as messages ---------------------------------------------------------------------------------


def messages_of(items: Sequence[Item], instructions: str | None) -> list[Message]:
    """The conversation as the chat template sees it. What the assistant said in one turn
    (reasoning, text, calls) is one message there. Raises BadRequest."""
    turns = _Turns()
    for item in items:
        if isinstance(item, CallOutputItem):
            turns.tool(item)
        elif isinstance(item, MessageItem) and item.role != "assistant":
            turns.other(item.role, item.text)
        else:
            turns.assistant(item)
    messages = turns.close()
    if not instructions:
        return messages
    if messages and messages[0].role in ("system", "developer"):
        # Many templates take one such message, at the start.
        first = messages[0]
        joined = f"{instructions}\n\n{first.content}"
        return [Message(role=first.role, content=joined), *messages[1:]]
    return [Message(role="system", content=instructions), *messages]


class _Turns:
    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}  # of called functions, by call id
        self._reset()

    def _reset(self) -> None:
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []

    def close(self) -> list[Message]:
        """End the assistant's turn, if one is open."""
        if self._reasoning or self._texts or self._calls:
            self._messages.append(
                Message(
                    role="assistant",
                    content="\n\n".join(self._texts) if self._texts else None,
                    reasoning="\n\n".join(self._reasoning) or None,
                    tool_calls=self._calls,
                )
            )
        self._reset()
        return self._messages

    def other(self, role: Literal["user", "system", "developer"], text: str) -> None:
        self.close().append(Message(role=role, content=text))

    def tool(self, item: CallOutputItem) -> None:
        if item.call_id not in self._names:
            raise BadRequest(
                f"input: there is no function_call with call_id {item.call_id[:64]!r}", "input"
            )
        message = Message(
            role="tool",
            content=item.text,
            tool_call_id=item.call_id,
            name=self._names[item.call_id],
        )
        self.close().append(message)

    def assistant(self, item: Item) -> None:
        if isinstance(item, CallItem):
            function = ChatCall(name=item.name, arguments=item.arguments)
            self._calls.append(ToolCall(id=item.call_id, function=function))
            self._names[item.call_id] = item.name
        elif isinstance(item, ReasoningItem):
            if self._texts or self._calls:
                self.close()
            if item.text:
                self._reasoning.append(item.text)
        elif isinstance(item, MessageItem):
            if self._texts and not self._calls:
                self.close()
            self._texts.append(item.text)
