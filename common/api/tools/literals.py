"""Python's keyword arguments to a JSON object: `city="Paris", days=[1, 2]`. Literals only."""

from __future__ import annotations

import re

from common.api.tools.json_text import encoded

_MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)
    |(?P<mark>[\[\](){},:=]))""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL
)
_PLAIN_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "\n": "",
    "\\": "\\",
    "'": "'",
    '"': '"',
}
_WORDS: dict[str, object] = {
    "True": True,
    "False": False,
    "None": None,
    "true": True,
    "false": False,
    "null": None,
}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class NotALiteral(ValueError):
    """There is something else than a literal, or nothing that JSON can say."""


def keywords_to_json(text: str) -> str:
    """`text`: what stands between the brackets of a call. Raises NotALiteral."""
    reader = _Reader(text)
    arguments: dict[str, object] = {}
    while not reader.is_at_end:
        name = reader.expect("word")
        reader.expect("mark", "=")
        arguments[name] = reader.value(0)
        if not reader.is_at_end:
            reader.expect("mark", ",")
    try:
        return encoded(arguments)
    except ValueError as error:
        raise NotALiteral(str(error)) from None


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._tokens)

    def next_is(self, mark: str) -> bool:
        return not self.is_at_end and self._tokens[self._at] == ("mark", mark)

    def take(self) -> tuple[str, str]:
        if self.is_at_end:
            raise NotALiteral("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def expect(self, kind: str, text: str | None = None) -> str:
        found_kind, found = self.take()
        if found_kind != kind or (text is not None and found != text):
            raise NotALiteral(f"{found[:20]!r} cannot stand there")
        return found

    def value(self, depth: int) -> object:
        kind, text = self.take()
        if depth > _MAX_DEPTH:
            raise NotALiteral("too many brackets")
        if kind == "string":
            value = _unescaped(text[1:-1])
            while not self.is_at_end and self._tokens[self._at][0] == "string":
                value += _unescaped(self.take()[1][1:-1])
            return value
        if kind == "number":
            return _number(text)
        if kind == "word" and text in _WORDS:
            return _WORDS[text]
        if text == "{":
            return self._dict(depth)
        if text in ("[", "("):
            return self._list(_CLOSING[text], depth)
        raise NotALiteral(f"{text[:20]!r} is not a literal")

    def _list(self, closing: str, depth: int) -> list[object]:
        values: list[object] = []
        while not self.next_is(closing):
            values.append(self.value(depth + 1))
            if not self.next_is(closing):
                self.expect("mark", ",")
        self.take()
        return values

    def _dict(self, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not self.next_is("}"):
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise NotALiteral("keys must be strings")
            self.expect("mark", ":")
            values[key] = self.value(depth + 1)
            if not self.next_is("}"):
                self.expect("mark", ",")
        self.take()
        return values


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise NotALiteral(f"{text[at : at + 20]!r} cannot be read")
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _number(text: str) -> object:
    try:
        is_integer = not set(text) & set(".eE")
        return int(text) if is_integer else float(text)
    except ValueError as error:
        raise NotALiteral(str(error)) from None


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    four, two, eight, octal, other = match.groups()
    if number := four or two or eight:
        code = int(number, 16)
        return chr(code) if code < 0x110000 else match[0]
    if octal:
        return chr(int(octal, 8))
    return _PLAIN_ESCAPES.get(other, match[0])
