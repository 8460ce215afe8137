"""Reasoning out of one choice's text, as it comes. What follows it is content, unread.

White space inside the marks and behind them belongs to the marks; the rest comes out as written.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from common.api.reasoning.formats import ReasoningFormat
from common.api.tools.deltas import ContentDelta, ReasoningDelta
from common.api.tools.source import Source, Wait


class ReasoningParser:
    def __init__(self, format_: ReasoningFormat, *, is_open: bool) -> None:
        """`is_open`: the prompt ends with the opening mark."""
        self._format = format_
        self._source = Source()
        self._deltas: list[ReasoningDelta | ContentDelta] = []
        self._space = ""  # of the reasoning, not shown yet
        self._has_begun = is_open
        self._num_chars = 0
        self._end: int | None = None  # characters up to and with the closing mark
        self._offsets: list[int] = []
        self._reading = self._read()

    @property
    def is_inside(self) -> bool:
        return self._has_begun and self._end is None

    @property
    def num_tokens(self) -> int:
        """Tokens of reasoning and its marks, of those told to `push`."""
        if not self._has_begun:
            return 0
        return len(self._offsets) if self._end is None else bisect_left(self._offsets, self._end)

    def push(self, text: str, offsets: Sequence[int] = ()) -> list[ReasoningDelta | ContentDelta]:
        """`offsets`: per token of this piece, the characters of the answer before it."""
        if self._end is None:
            self._offsets += offsets
        self._num_chars += len(text)
        self._source.push(text)
        return self._go_on()

    def finish(self) -> list[ReasoningDelta | ContentDelta]:
        self._source.is_ended = True
        return self._go_on()

    def _go_on(self) -> list[ReasoningDelta | ContentDelta]:
        next(self._reading, None)
        deltas, self._deltas = self._deltas, []
        return deltas

    def _read(self) -> Wait[None]:
        source, marks = self._source, self._format
        if not self._has_begun:
            yield from source.space()
            self._has_begun = yield from source.accept(marks.opener)
        if self._has_begun:
            yield from source.space()
            source.mark()
            if (yield from source.until((marks.closer,), self._reasoning)) is None:
                return
            source.take(len(marks.closer))
            self._end = self._num_chars - (len(source.text) - source.at)
            yield from source.space()
        else:
            self._content(source.since_mark())
        source.mark()
        yield from source.until((), self._content)

    def _reasoning(self, text: str) -> None:
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._deltas.append(ReasoningDelta(shown))

    def _content(self, text: str) -> None:
        if text:
            self._deltas.append(ContentDelta(text))
