"""Calls as Llama 4 writes them: a list of Python calls, as the whole answer or between two marks.

    [get_weather(city="Paris"), get_time(zones=["CET"], exact=True)]

The values are read as Python literals and given out as JSON, one call at a time: nothing is run.
A bare list counts only if it begins with the name of a tool of the client's.
"""

from __future__ import annotations

import re

from common.api.tools.literals import NotALiteral, keywords_to_json
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

_BEGIN, _END = "<|python_start|>", "<|python_end|>"
_PLAIN = re.compile(r"[^\"'()\[\]{}\\]*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def read_pythonic(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
    yield from _list(source, writer, names)
    while (yield from source.until((_BEGIN,), writer.text)):
        source.mark()
        source.take(len(_BEGIN))
        yield from _list(source, writer, names)


def _list(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
    yield from source.space()
    is_open = yield from source.accept("[")
    while is_open and (yield from _call(source, writer, names)):
        source.mark()
        yield from source.space()
        if (yield from source.accept("]")):
            yield from source.space()
            yield from source.accept(_END)
            source.mark()
            break
        is_open = yield from source.accept(",")
    writer.text(source.since_mark())
    source.mark()


def _call(source: Source, writer: Writer, names: frozenset[str]) -> Wait[bool]:
    yield from source.space()
    name = yield from source.word(_is_name, names)
    if name not in names or not (yield from source.accept("(")):
        return False
    text = yield from _to_closing_bracket(source)
    try:
        arguments = keywords_to_json(text) if text is not None else None
    except NotALiteral:
        return False
    if arguments is None:
        return False
    writer.call(name, arguments)
    return True


def _to_closing_bracket(source: Source) -> Wait[str | None]:
    """The text up to the bracket that closes the open one; None if it never comes."""
    pieces: list[str] = []
    expected = [")"]
    quote = ""
    while character := (yield from source.peek()):
        if character == "\\":
            pieces.append(source.take(1))
            if (yield from source.has_more()):
                pieces.append(source.take(1))
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _CLOSING:
            expected.append(_CLOSING[character])
        elif character in ")]}":
            if character != expected.pop():
                return None
            if not expected:
                source.take(1)
                return "".join(pieces)
        pieces.append(source.take(1))
        match = _PLAIN.match(source.text, source.at)
        assert match is not None
        pieces.append(source.take(match.end() - source.at))
    return None


def _is_name(character: str) -> bool:
    return character.isalnum() or character in "_-."
