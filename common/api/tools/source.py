"""Text that is still coming, read by generators that stop where it stops.

A grammar is a generator: it asks a `Source` for what comes next and yields while nothing can be
said yet. Every question is answered from characters alone, never from where a piece ended, so the
outcome cannot depend on the pieces.

    def greeting(source: Source) -> Wait[bool]:
        yield from source.space()
        return (yield from source.accept("hello"))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]


class Source:
    def __init__(self) -> None:
        self.text = ""
        self.at = 0  # the next character
        self.is_ended = False
        self._trail: list[str] = []  # taken since the mark

    def push(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    # --- without waiting -------------------------------------------------------------------------

    def take(self, count: int) -> str:
        taken = self.text[self.at : self.at + count]
        self.at += len(taken)
        self._trail.append(taken)
        return taken

    def mark(self) -> None:
        """From here on what is taken may have to be given back as text."""
        self._trail.clear()

    def since_mark(self) -> str:
        return "".join(self._trail)

    # --- waiting ---------------------------------------------------------------------------------

    def has_more(self) -> Wait[bool]:
        """Is there a next character?"""
        while self.at >= len(self.text):
            if self.is_ended:
                return False
            yield
        return True

    def peek(self) -> Wait[str]:
        """The next character; "" at the end."""
        return self.text[self.at] if (yield from self.has_more()) else ""

    def space(self) -> Wait[None]:
        while (yield from self.has_more()) and self.text[self.at].isspace():
            self.take(1)

    def accept(self, word: str) -> Wait[bool]:
        """Take `word` if it comes next; else nothing."""
        while not self.text.startswith(word, self.at):
            if self.is_ended or not word.startswith(self.text[self.at : self.at + len(word)]):
                return False
            yield
        self.take(len(word))
        return True

    def word(
        self,
        is_part: Callable[[str], bool],
        among: Collection[str] | None = None,
        max_chars: int = 256,
    ) -> Wait[str]:
        """The characters that come next and are part of a word; `among`: stop once it cannot become
        one of these."""
        found = ""
        while (character := (yield from self.peek())) and is_part(character):
            found += self.take(1)
            if among is not None and not any(each.startswith(found) for each in among):
                break
            if len(found) >= max_chars:
                break
        return found

    def until(self, marks: Sequence[str], show: Callable[[str], None]) -> Wait[str | None]:
        """Show the text before the first of `marks`, as soon as it is certain; stand before the
        mark. None: the text ended without one."""
        while True:
            found = [(self.text.find(mark, self.at), mark) for mark in marks]
            starts = [(start, mark) for start, mark in found if start >= 0]
            if starts:
                start, mark = min(starts)
                self._show(start, show)
                return mark
            keep = 0 if self.is_ended else could_begin(self.text[self.at :], marks)
            self._show(len(self.text) - keep, show)
            if self.is_ended:
                return None
            yield

    def _show(self, end: int, show: Callable[[str], None]) -> None:
        if end > self.at:
            show(self.take(end - self.at))
            self.mark()


def could_begin(text: str, marks: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the start of a mark."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(len(text), longest), 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) for mark in marks):
            return length
    return 0
