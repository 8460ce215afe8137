"""Calls as Kimi K2 writes them. What names the function is the call's id, too, which the model
wants to see again in the history.

<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>
{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>
"""

from __future__ import annotations

import re

from common.api.tools.calls import read_arguments
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

CALLS_BEGIN, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"

_ID = re.compile(r"(?:functions\.)?([A-Za-z0-9_.-]+?)(?::([0-9]{1,6}))?")


def read_kimi(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
    used: set[str] = set()
    while mark := (yield from source.until((CALLS_BEGIN, CALL_BEGIN), writer.text)):
        source.mark()
        if mark == CALLS_BEGIN:
            source.take(len(mark))
            yield from source.space()
        while (yield from source.accept(CALL_BEGIN)):
            if not (yield from _call(source, writer, used)):
                break
            source.mark()
            yield from source.space()
            if (yield from source.accept(CALLS_END)):
                source.mark()
                break
        writer.text(source.since_mark())
        source.mark()


def _call(source: Source, writer: Writer, used: set[str]) -> Wait[bool]:
    yield from source.space()
    found = _ID.fullmatch((yield from source.word(_is_part)))
    yield from source.space()
    if found is None or not (yield from source.accept(ARGUMENTS)):
        return False
    yield from source.space()
    if (yield from source.peek()) != "{":
        return False
    name, number = found.groups()
    call_id = f"functions.{name}:{number}"
    if number is None or call_id in used:
        call_id = f"functions.{name}:{len(used)}"
    used.add(call_id)
    writer.begin(name, call_id)
    yield from read_arguments(source, writer, (CALL_END, CALLS_END))
    yield from source.space()
    yield from source.accept(CALL_END)
    return True


def _is_part(character: str) -> bool:
    return (character.isascii() and character.isalnum()) or character in "_-.:"
