"""Tool calls out of one choice's text, as it comes. Knows no format: a grammar does the reading.

A whole answer is the sum of the deltas that a stream would show, so the two cannot differ. A call
that cannot be read stays text, to the last character.
"""

from __future__ import annotations

from collections.abc import Callable

from common.api.tools.deltas import ToolDelta
from common.api.tools.source import Source, Wait
from common.api.tools.writer import Writer

# Reads a whole answer. The names are those of the tools that the client offered.
Grammar = Callable[[Source, Writer, frozenset[str]], Wait[None]]


class ToolCallParser:
    def __init__(self, grammar: Grammar, names: frozenset[str], writer: Writer) -> None:
        self._source = Source()
        self._writer = writer
        self._reading = grammar(self._source, self._writer, names)
        self._is_over = False

    @property
    def num_calls(self) -> int:
        return self._writer.num_calls

    def push(self, text: str) -> list[ToolDelta]:
        self._source.push(text)
        self._read()
        return self._writer.take()

    def finish(self) -> list[ToolDelta]:
        """The text has ended: what was held back, and a call cut short, come out."""
        self._source.is_ended = True
        self._read()
        self._writer.finish()
        return self._writer.take()

    def _read(self) -> None:
        if not self._is_over:
            self._is_over = next(self._reading, self) is self
