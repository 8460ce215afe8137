"""Calls as Llama 3 writes them: bare JSON as the whole answer, or JSON behind a mark.

    {"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": …}
    <|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}

Bare JSON is a call only if it names a tool of the client's and has no keys but a call's: an answer
in JSON is not mistaken for one.
"""

from __future__ import annotations

from common.api.tools.calls import read_call
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

_MARK = "<|python_tag|>"


def read_llama_json(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
    yield from _calls(source, writer, names)
    while (yield from source.until((_MARK,), writer.text)):
        source.mark()
        source.take(len(_MARK))
        yield from _calls(source, writer, None)


def _calls(source: Source, writer: Writer, names: frozenset[str] | None) -> Wait[None]:
    while (yield from read_call(source, writer, (_MARK,), names)):
        source.mark()
        yield from source.space()
        if not (yield from source.accept(";")):
            break
    writer.text(source.since_mark())
    source.mark()
