"""Find the first stop string in a growing text and hold back what could become one.

The text is read character by character, so the outcome does not depend on how it was cut into
pieces: the stop string that is complete first wins, the longest if several end at one character.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Knuth-Morris-Pratt, one automaton per stop string: constant amortised work per character."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._beginnings = frozenset(stop[0] for stop in stops)
        self._tables = [_failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop that the text ends with
        self._include_stop = include_stop
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The text that may be shown now. Once `found` is set, this was the last of it."""
        if not self._held and self._beginnings.isdisjoint(piece):
            return piece  # nothing begins here: halves the cost of a token
        text = self._held + piece
        for position in range(len(self._held), len(text)):
            for n, stop in enumerate(self._stops):
                if self._advance(n, stop, text[position]):
                    self.found = stop
                    self._held = ""
                    end = position + 1
                    return text[: end if self._include_stop else end - len(stop)]
        keep = max(self._matched, default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The end of the text came without a stop string: what was held back."""
        held, self._held = self._held, ""
        return held

    def _advance(self, n: int, stop: str, character: str) -> bool:
        table, matched = self._tables[n], self._matched[n]
        while matched and stop[matched] != character:
            matched = table[matched - 1]
        matched += stop[matched] == character
        self._matched[n] = matched
        return matched == len(stop)


def _failure_table(stop: str) -> list[int]:
    """table[i]: length of the longest proper prefix of `stop` that ends at character i."""
    table = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[matched] != stop[i]:
            matched = table[matched - 1]
        matched += stop[matched] == stop[i]
        table[i] = matched
    return table
