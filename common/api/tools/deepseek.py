"""Calls as DeepSeek writes them: V3 and R1 with a fence around the arguments, V3.1 without.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
```json
{"city": "Paris"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}…
"""

from __future__ import annotations

from common.api.tools.calls import read_arguments
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"


def read_deepseek(source: Source, writer: Writer, names: frozenset[str]) -> Wait[None]:
    while mark := (yield from source.until((CALLS_BEGIN, CALL_BEGIN), writer.text)):
        source.mark()
        if mark == CALLS_BEGIN:
            source.take(len(mark))
            yield from source.space()
        while (yield from source.accept(CALL_BEGIN)):
            if not (yield from _call(source, writer)):
                break
            source.mark()
            yield from source.space()
            if (yield from source.accept(CALLS_END)):
                source.mark()
                break
        writer.text(source.since_mark())
        source.mark()


def _call(source: Source, writer: Writer) -> Wait[bool]:
    yield from source.space()
    name = yield from source.word(_is_name)
    yield from source.space()
    if not (yield from source.accept(SEPARATOR)):
        return False
    if name == "function" and (yield from source.peek()) != "{":
        yield from source.space()
        name = yield from source.word(_is_name)
        yield from source.space()
        yield from source.accept("```json")
        yield from source.space()
    if not name or (yield from source.peek()) != "{":
        return False
    writer.begin(name)
    yield from read_arguments(source, writer, (CALL_END, CALLS_END))
    yield from source.space()
    yield from source.accept("```")
    yield from source.space()
    yield from source.accept(CALL_END)
    return True


def _is_name(character: str) -> bool:
    return character.isalnum() or character in "_-."
