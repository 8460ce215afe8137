"""One call written as a JSON object, `{"name": …, "arguments": {…}}`: what most formats share.

Arguments are passed on as the model wrote them. They are streamed if the name came before them;
else, and if they came as a string, the call is given out as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.api.tools.json_text import decoded, encoded, read_string, read_value
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

_ARGUMENTS = ("arguments", "parameters")
_KEYS = frozenset({"name", "type", "id", "function", *_ARGUMENTS})


def read_call(
    source: Source,
    writer: Writer,
    closers: Sequence[str] = (),
    names: frozenset[str] | None = None,
) -> Wait[bool]:
    """Read the call that comes next. False: it is none, and what was taken is text.

    `closers`: where arguments end at the latest that stopped being JSON.
    `names`: only these functions, and no keys but a call's: for text without a mark before it.
    """
    yield from source.space()
    if not (yield from source.accept("{")):
        return False
    name: str | None = None
    values: dict[str, str] = {}
    keys = None if names is None else _KEYS
    while True:
        yield from source.space()
        key = yield from read_string(source, keys)
        if key is None or not (yield from _accept_colon(source)):
            return False
        yield from source.space()
        if key == "name" and name is None:
            name = yield from read_string(source, names)
            if not name:
                return False
        elif name and key in _ARGUMENTS and (yield from source.peek()) == "{":
            writer.begin(name)
            yield from read_arguments(source, writer, closers)
            if not (yield from _rest_of_object(source)):
                writer.text(source.since_mark())
            return True
        else:
            pieces: list[str] = []
            if not (yield from read_value(source, pieces.append)):
                return False
            values[key] = "".join(pieces)
        yield from source.space()
        if not (yield from source.accept(",")):
            break
    if not (yield from source.accept("}")):
        return False
    return _whole_call(writer, name, values, names)


def read_arguments(source: Source, writer: Writer, closers: Sequence[str] = ()) -> Wait[None]:
    """Stream the object that comes next as the arguments of the call that has begun."""

    def show(text: str) -> None:
        writer.arguments(text)
        source.mark()

    if not (yield from read_value(source, show)):
        yield from source.until(closers, show)


def _rest_of_object(source: Source) -> Wait[bool]:
    """What a call says behind its arguments is not asked for. False: it does not end there."""
    while True:
        yield from source.space()
        if (yield from source.accept("}")):
            return True
        if not (yield from source.accept(",")):
            return False
        yield from source.space()
        key = yield from read_string(source)
        if key is None or not (yield from _accept_colon(source)):
            return False
        if not (yield from read_value(source, lambda text: None)):
            return False


def _accept_colon(source: Source) -> Wait[bool]:
    yield from source.space()
    return (yield from source.accept(":"))


def _whole_call(
    writer: Writer, name: str | None, values: dict[str, str], names: frozenset[str] | None
) -> bool:
    arguments = values.get("arguments", values.get("parameters", "{}"))
    function = decoded(values.get("function", "")) if name is None else None
    if isinstance(function, str):
        name = function
    elif isinstance(function, dict) and isinstance(function.get("name"), str):
        name = function["name"]
        try:
            arguments = encoded(function.get("arguments", function.get("parameters", {})))
        except ValueError:
            return False
    if not name or (names is not None and name not in names):
        return False
    value = decoded(arguments)
    if value is None:
        arguments = "{}"
    elif isinstance(value, str):
        arguments = value
    writer.call(name, arguments)
    return True
