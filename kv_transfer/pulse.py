"""When a consumer beats, and when a producer's silence means that it is lost. Has no timer.

Silence is counted in beats that brought no answer, not in wall time: a consumer whose own event
loop stood still does not take that for the producer's death.
"""

from __future__ import annotations

from collections.abc import Iterable

from kv_transfer import messages as m

BEATS_PER_SILENCE = 6
BEATS_PER_LEASE = 4


class Pulse:
    def __init__(self, silence_s: float) -> None:
        """`silence_s`: who answers nothing for so long is lost."""
        self.beat_s = silence_s / BEATS_PER_SILENCE
        self._silence_s = silence_s
        self._silent_s = 0.0
        self._has_answered = False

    def start(self) -> None:
        self._silent_s = 0.0
        self._has_answered = False

    def heard(self) -> None:
        self._has_answered = True

    def fits(self, lease_s: float) -> bool:
        """Do leases of that length live from beat to beat? If not, beat faster from now on."""
        needed_s = lease_s / BEATS_PER_LEASE
        if self.beat_s <= needed_s:
            return True
        self.beat_s = needed_s
        return False

    def beat(self) -> bool:
        """`beat_s` have gone by. False: the producer is lost."""
        self._silent_s = 0.0 if self._has_answered else self._silent_s + self.beat_s
        self._has_answered = False
        return self._silent_s < self._silence_s


def renewals(claims: Iterable[str]) -> list[m.Renew]:
    tokens = tuple(claims)
    step = m.MAX_CLAIMS_PER_RENEW
    return [m.Renew(tokens[start : start + step]) for start in range(0, len(tokens), step)]
