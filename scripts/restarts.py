"""When a process that has ended may start again, and when that is no use any more. Pure: time is a
parameter, nothing is started here.

    ended by itself, cleanly   at once: it was asked to (a rolling restart)
    died                       after 1 s, then 2, 4, 8, 16 … 30 s, until it has lived for a minute
    died MAX_IN_A_ROW times    never: somebody must look at its log
"""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 30.0
STABLE_S = 60.0  # who has lived so long starts with a clean slate
MAX_IN_A_ROW = 6


@dataclass(slots=True)
class Restarts:
    """One topology's book, by the name of the process."""

    _deaths: dict[str, int] = field(default_factory=dict)  # in a row
    _due: dict[str, float] = field(default_factory=dict)

    def ended(self, name: str, *, is_clean: bool, lived_s: float, now: float) -> float | None:
        """Seconds until it may start again; None: never."""
        if lived_s >= STABLE_S or is_clean:
            self._deaths[name] = 0
        delay_s = 0.0
        if not is_clean:
            self._deaths[name] = deaths = self._deaths.get(name, 0) + 1
            if deaths >= MAX_IN_A_ROW:
                self._due.pop(name, None)
                return None
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (deaths - 1))
        self._due[name] = now + delay_s
        return delay_s

    def postpone(self, name: str, now: float) -> None:
        """Somebody else has its place now: look again later."""
        self._due[name] = now + FIRST_DELAY_S

    def is_due(self, name: str, now: float) -> bool:
        return name in self._due and now >= self._due[name]

    def started(self, name: str) -> None:
        self._due.pop(name, None)

    def is_hopeless(self, name: str) -> bool:
        return self._deaths.get(name, 0) >= MAX_IN_A_ROW
