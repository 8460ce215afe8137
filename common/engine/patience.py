"""How long an engine may be at one thing before it counts as stuck: learnt from how long its things
take. Plain arithmetic.

An engine whose steps take milliseconds is given up sooner than one whose long prompts take seconds;
one that has not done much yet may be compiling, and gets all the time there is.
"""

from __future__ import annotations

LEAST_S = 10.0  # an adapter may be loaded between two steps
MOST_S = 30.0
TIMES = 20.0  # the longest of late
FADING = 0.999  # of the longest, with each thing that comes after it
NUM_TO_KNOW = 200


class Patience:
    def __init__(self) -> None:
        self._longest_s = 0.0
        self._num_seen = 0

    def took(self, seconds: float) -> None:
        """One more thing has been done."""
        self._longest_s = max(seconds, self._longest_s * FADING)
        self._num_seen += 1

    @property
    def limit_s(self) -> float:
        if self._num_seen < NUM_TO_KNOW:
            return MOST_S
        return min(MOST_S, max(LEAST_S, TIMES * self._longest_s))
