"""Calls as Hermes, Qwen and many others write them; several follow one another.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Also for relatives with other marks, or with a list of calls between them.
"""

from __future__ import annotations

from common.api.tools.calls import read_call
from common.api.tools.parser import Grammar
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer


def tagged(opener: str, closer: str) -> Grammar:
    """One call, or a list of calls, between two marks."""

    def read(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
        while (yield from source.until((opener,), writer.text)):
            source.mark()
            source.take(len(opener))
            if not (yield from read_call_or_list(source, writer, closer)):
                writer.text(source.since_mark())
                continue
            source.mark()
            yield from source.space()
            if closer:
                yield from source.accept(closer)

    return read


def read_call_or_list(source: Source, writer: Writer, closer: str) -> Wait[bool]:
    """False: what was taken since the mark is text."""
    yield from source.space()
    closers = (closer,) if closer else ()
    if not (yield from source.accept("[")):
        return (yield from read_call(source, writer, closers))
    while (yield from read_call(source, writer, closers)):
        source.mark()
        yield from source.space()
        if (yield from source.accept("]")):
            return True
        if not (yield from source.accept(",")):
            return False
    return False


read_hermes = tagged("<tool_call>", "</tool_call>")
