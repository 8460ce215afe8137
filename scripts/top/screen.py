"""A terminal, drawn over again and again and given back as it was. Knows not what is shown."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Literal

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # other screen, no cursor, no wrapping
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"

Event = Literal["quit", "resized", "time"]


class Screen:
    """A context: what happens inside may end in any way. For the main thread."""

    def __enter__(self) -> Screen:
        self._stdin = sys.stdin.fileno()
        self._before: list[Any] = termios.tcgetattr(self._stdin)
        self._woken, self._waker = os.pipe()
        self._old_handler = signal.signal(signal.SIGWINCH, self._on_resize)
        tty.setcbreak(self._stdin)
        self._write(_ENTER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGWINCH, self._old_handler)
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._before)
        self._write(_LEAVE)
        os.close(self._woken)
        os.close(self._waker)

    def draw(self, lines: Sequence[str]) -> None:
        """`lines`: as wide and as many as fit."""
        self._write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")

    def wait(self, timeout_s: float) -> Event:
        ready, _, _ = select.select([self._stdin, self._woken], [], [], timeout_s)
        if self._woken in ready:
            os.read(self._woken, 4096)
            return "resized"
        if self._stdin in ready:
            pressed = os.read(self._stdin, 64)
            return "quit" if not pressed or pressed[:1] in b"qQ\x04" else "time"
        return "time"

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        os.write(self._waker, b"w")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
