"""How many wait at one bound: those of this process, or of all that share it."""

from __future__ import annotations

from typing import Protocol


class Tally(Protocol):
    def add(self, num: int, most: int) -> int | None:
        """Count `num` more if that makes no more than `most`, or if nobody is counted: None. Else
        how many are counted."""
        ...

    def less(self, num: int) -> None:
        """So many of those that were added are gone."""
        ...


class OwnTally:
    """In this process alone."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, num: int, most: int) -> int | None:
        if self._count and self._count + num > most:
            return self._count
        self._count += num
        return None

    def less(self, num: int) -> None:
        self._count -= num
