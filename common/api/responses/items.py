"""Items, the currency of /v1/responses: what goes in and what comes out.

Input is decoded here, once; from then on an item is one of four frozen structs, which encode to the
JSON that clients see.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any, Literal

import msgspec

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
            error = BadRequest(f"{where}.id: there is no stored item of this id", f"{where}.id")
            error.code = "item_not_found"
            raise error
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
