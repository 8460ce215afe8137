"""JSON that is still coming: where a value ends, and the first character that cannot be JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum

from common.api.tools.source import Source, Wait

_SPACE = " \t\n\r"
_IN_STRING = re.compile(r'[^"\\]*')
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SCALAR_CHARS = re.compile(r"[0-9a-zA-Z.+-]*")
MAX_STRING_CHARS = 1024  # of names and keys


class _Expect(Enum):
    VALUE = "a value"
    VALUE_OR_END = "a value, or the end of an empty array"
    KEY = "a key"
    KEY_OR_END = "a key, or the end of an empty object"
    COLON = "a colon"
    COMMA_OR_END = "a comma, or the end"


class JsonScanner:
    """Finds the end of one value. Line breaks in strings are let through, as models write them."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._expect = _Expect.VALUE
        self._open: list[str] = []  # brackets
        self._in_string = False
        self._is_escaped = False
        self._scalar = ""  # a number or word that has not ended

    def scan(self, text: str, start: int) -> int:
        """Reads on from `start`; where it stopped: behind the value's last character, before the
        first that is wrong, or at the end of the text."""
        at = start
        while at < len(text) and not self.is_done and not self.is_broken:
            if self._in_string:
                at = self._string(text, at)
            elif self._scalar:
                at = self._rest_of_scalar(text, at)
            elif (
                text[at] in _SPACE
                and (self._open or self._expect is _Expect.VALUE)
                or self._character(text[at])
            ):
                at += 1
            else:
                self.is_broken = True
        return at

    def _string(self, text: str, at: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return at + 1
        match = _IN_STRING.match(text, at)
        assert match is not None
        at = match.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._is_escaped = True
        else:
            self._in_string = False
            self._after_string()
        return at + 1

    def _rest_of_scalar(self, text: str, at: int) -> int:
        match = _SCALAR_CHARS.match(text, at)
        assert match is not None
        self._scalar += match[0]
        if match.end() < len(text):
            self.is_broken = not _SCALAR.fullmatch(self._scalar)
            self._scalar = ""
            self._after_value()
        return match.end()

    def _character(self, character: str) -> bool:
        """One character outside of strings and scalars; False if it cannot stand here."""
        expect = self._expect
        if character in "]}":
            return self._close(character)
        if expect is _Expect.COLON:
            self._expect = _Expect.VALUE
            return character == ":"
        if expect is _Expect.COMMA_OR_END:
            self._expect = _Expect.KEY if self._open[-1] == "{" else _Expect.VALUE
            return character == ","
        if character == '"':
            self._in_string = True
            return True
        if expect in (_Expect.KEY, _Expect.KEY_OR_END):
            return False
        if character in "{[":
            self._open.append(character)
            self._expect = _Expect.KEY_OR_END if character == "{" else _Expect.VALUE_OR_END
            return True
        self._scalar = character
        return bool(_SCALAR_CHARS.fullmatch(character))

    def _close(self, character: str) -> bool:
        bracket, empty = (
            ("{", _Expect.KEY_OR_END) if character == "}" else ("[", _Expect.VALUE_OR_END)
        )
        if not self._open or self._open[-1] != bracket:
            return False
        if self._expect not in (empty, _Expect.COMMA_OR_END):
            return False
        self._open.pop()
        self._after_value()
        return True

    def _after_string(self) -> None:
        if self._expect in (_Expect.KEY, _Expect.KEY_OR_END):
            self._expect = _Expect.COLON
        else:
            self._after_value()

    def _after_value(self) -> None:
        self.is_done = not self._open and not self.is_broken
        self._expect = _Expect.COMMA_OR_END


def read_value(source: Source, show: Callable[[str], None]) -> Wait[bool]:
    """Show the text of the value that comes next, in pieces; False if it breaks off or is wrong:
    then the source stands before the first character that cannot be JSON."""
    scanner = JsonScanner()
    while not scanner.is_done and not scanner.is_broken:
        if not (yield from source.has_more()):
            return False
        end = scanner.scan(source.text, source.at)
        show(source.take(end - source.at))
    return scanner.is_done


def read_string(source: Source, among: frozenset[str] | None = None) -> Wait[str | None]:
    """A short JSON string, decoded; None if there is none. `among`: one of these, or None as soon
    as that is out of the question."""
    if not (yield from source.accept('"')):
        return None
    raw = ""
    while (character := (yield from source.peek())) != '"':
        if not character or len(raw) > MAX_STRING_CHARS:
            return None
        raw += source.take(1)
        if character == "\\" and (yield from source.has_more()):
            raw += source.take(1)
        if among is not None and not any(word.startswith(raw) for word in among):
            return None
    source.take(1)
    value = decoded(f'"{raw}"')
    if not isinstance(value, str) or (among is not None and value not in among):
        return None
    return value


def decoded(text: str) -> object:
    """The value, or None if it is not JSON or holds half of a surrogate pair."""
    try:
        value: object = json.loads(text, strict=False)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def encoded(value: object) -> str:
    """Raises ValueError for what JSON cannot say."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text
