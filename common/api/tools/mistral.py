"""Calls as Mistral's models write them, in the old form and in the new one.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}, …]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]…

The new form may have `[CALL_ID]xyz` behind the name, or no `[ARGS]`. Mistral's templates ask for
ids of nine letters and digits.
"""

from __future__ import annotations

import secrets
import string

from common.api.tools.calls import read_arguments
from common.api.tools.hermes import read_call_or_list
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

_MARK, _CALL_ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def read_mistral(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
    while (yield from source.until((_MARK,), writer.text)):
        source.mark()
        source.take(len(_MARK))
        yield from source.space()
        is_old = (yield from source.peek()) in ("[", "{")
        reading = read_call_or_list(source, writer, "") if is_old else _named(source, writer)
        if not (yield from reading):
            writer.text(source.since_mark())


def _named(source: Source, writer: Writer) -> Wait[bool]:
    name = yield from source.word(_is_name)
    yield from source.space()
    if (yield from source.accept(_CALL_ID)):
        yield from source.word(_is_name)
    yield from source.accept(_ARGS)
    yield from source.space()
    if not name or (yield from source.peek()) != "{":
        return False
    writer.begin(name)
    yield from read_arguments(source, writer, (_MARK,))
    return True


def _is_name(character: str) -> bool:
    return character.isalnum() or character in "_-."


def new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
