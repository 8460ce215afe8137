"""Tool calls in a model's text, in the form that Hermes and Qwen models write:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

The parser takes text as it comes and gives deltas; a whole answer is the sum of its deltas, so
streamed and whole answers cannot differ. `arguments` are passed on as the model wrote them. A call
that cannot be read stays text. White space behind calls is dropped, and before them at the end.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_MAX_HEAD_CHARS = 1024  # then the call is read as a whole, at its end


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """`name` and `call_id` once, at the start of a call; `arguments` in pieces."""

    index: int
    arguments: str = ""
    name: str | None = None
    call_id: str | None = None

    def body(self) -> dict[str, object]:
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        return {
            "index": self.index,
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


Delta = ContentDelta | CallDelta


class ToolCallParser:
    """Reads one choice. `max_calls`: further calls are dropped (parallel_tool_calls: false)."""

    def __init__(self, max_calls: int | None = None) -> None:
        self.num_calls = 0
        self._max_calls = max_calls
        self._buffer = ""  # text not yet given out
        self._call: _Call | None = None  # the call being read
        self._after_call = False  # nothing but white space since the last call
        self._space = ""  # white space before a call: shown only if more text follows

    def push(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """The text has ended: what was held back, and a call cut short, come out."""
        deltas: list[Delta] = []
        if self._call is None:
            self._show(deltas, self._buffer.lstrip() if self._after_call else self._buffer)
        elif not self._call.is_open:
            self._call.rest.append(self._buffer)
            self._end_call(deltas, self._call, closed=False)
        else:
            self._arguments(deltas, self._call, self._buffer)
        self._buffer = ""
        return deltas

    def _step(self, deltas: list[Delta]) -> bool:
        """Read on as far as possible. True: there may be more to read."""
        return self._read_call(deltas) if self._call else self._read_text(deltas)

    def _read_text(self, deltas: list[Delta]) -> bool:
        if self._after_call:
            self._buffer = self._buffer.lstrip()
            self._after_call = not self._buffer
        start = self._buffer.find(_OPEN)
        if start >= 0:
            shown = self._buffer[:start].rstrip()
            self._show(deltas, shown)
            self._space += self._buffer[len(shown) : start]
            self._call = _Call(self.num_calls)
            self._buffer = self._buffer[start + len(_OPEN) :]
            return True
        keep = _could_begin(self._buffer, _OPEN)
        shown = self._buffer[: len(self._buffer) - keep].rstrip()
        self._show(deltas, shown)
        self._buffer = self._buffer[len(shown) :]
        return False

    def _read_call(self, deltas: list[Delta]) -> bool:
        call = self._call
        assert call is not None
        end = self._buffer.find(_CLOSE)
        keep = 0 if end >= 0 else _could_begin(self._buffer, _CLOSE)
        stop = end if end >= 0 else len(self._buffer) - keep
        self._arguments_or_head(deltas, call, self._buffer[:stop])
        self._buffer = self._buffer[stop:]
        if end < 0:
            return False
        self._buffer = self._buffer[len(_CLOSE) :]
        self._after_call = call.is_open or self._end_call(deltas, call, closed=True)
        self._call = None
        return True

    def _arguments_or_head(self, deltas: list[Delta], call: _Call, text: str) -> None:
        if call.is_open:
            self._arguments(deltas, call, text)
            return
        missing = _MAX_HEAD_CHARS - len(call.head)
        if missing <= 0:
            call.rest.append(text)
            return
        call.head += text[:missing]
        call.rest.append(text[missing:])
        match = _HEAD.match(call.head)
        name = _json_string(match[1]) if match else None
        if match and name:
            call.is_open = True
            self._start_call(deltas, call, name)
            self._arguments(deltas, call, call.raw()[match.end() :])

    def _start_call(self, deltas: list[Delta], call: _Call, name: str, arguments: str = "") -> None:
        call.is_dropped = self._max_calls is not None and self.num_calls >= self._max_calls
        if not call.is_dropped:
            self.num_calls += 1
            deltas.append(CallDelta(call.index, arguments, name, f"call_{uuid.uuid4().hex[:24]}"))

    def _arguments(self, deltas: list[Delta], call: _Call, text: str) -> None:
        if (arguments := call.value.take(text)) and not call.is_dropped:
            deltas.append(CallDelta(call.index, arguments))

    def _end_call(self, deltas: list[Delta], call: _Call, *, closed: bool) -> bool:
        """A call that could not be read in pieces: read it whole, or leave it as text (False)."""
        raw = call.raw()
        found = _read_whole(raw)
        if found:
            self._start_call(deltas, call, *found)
        else:
            self._show(deltas, _OPEN + raw + (_CLOSE if closed else ""))
        return found is not None

    def _show(self, deltas: list[Delta], text: str) -> None:
        if text:
            deltas.append(ContentDelta(self._space + text))
            self._space = ""


@dataclass(slots=True)
class _Call:
    index: int
    head: str = ""  # its first characters, until they are understood
    rest: list[str] = field(default_factory=list)  # what follows a head that is not
    is_open: bool = False  # the name has been given out
    is_dropped: bool = False
    value: _ObjectScanner = field(default_factory=lambda: _ObjectScanner())

    def raw(self) -> str:
        return self.head + "".join(self.rest)


class _ObjectScanner:
    """Passes on the text of one JSON object and drops what follows it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._done = False

    def take(self, text: str) -> str:
        if self._done:
            return ""
        for position, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._done = True
                    return text[: position + 1]
        return text


def _could_begin(text: str, tag: str) -> int:
    """Characters at the end of `text` that may be the start of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0


def _json_string(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _read_whole(raw: str) -> tuple[str, str] | None:
    """(name, arguments) of a call in any order of keys, also with arguments as a JSON string."""
    try:
        call = json.loads(raw, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        return call["name"], arguments
    return call["name"], json.dumps(arguments, ensure_ascii=False)
