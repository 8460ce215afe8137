"""Counts and durations that also know their last minute: pace and percentiles.

Made for the path of every token: to observe is a binary search in C and two additions. Percentiles
are read from fine buckets, within 5 % of the truth. Knows no metric names and no labels; time is a
parameter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WINDOW_S = 60.0
_SLICE_S = 5.0  # the window is this much too long at most
_GROWTH = 1.1  # from one fine bound to the next


Bar = tuple[float, float, int]  # lower end, upper end, how many values; more than none


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In the unit of what was observed; None: nothing was."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


class Window:
    """What growing counts have gained in about the last minute."""

    def __init__(self, counts: list[int], now: float) -> None:
        """`counts`: the caller's, which calls `turn` before it changes them after `turn_at`."""
        self.turn_at = now + _SLICE_S
        self._counts = counts
        self._began = now
        self._past: deque[tuple[float, list[int]]] = deque([(now, counts.copy())])

    def turn(self, now: float) -> None:
        """Nothing has changed since `turn_at`, so what is counted now was so then."""
        self._past.append((self.turn_at, self._counts.copy()))
        while len(self._past) > 1 and self._past[1][0] <= now - WINDOW_S:
            self._past.popleft()
        self.turn_at = now + _SLICE_S

    def gained(self, now: float) -> list[int]:
        if now >= self.turn_at:
            self.turn(now)
        then = self._past[0][1]
        return [count - before for count, before in zip(self._counts, then, strict=True)]

    def length_s(self, now: float) -> float:
        """Of the window: shorter than a minute only after the start."""
        return max(1e-9, min(WINDOW_S, now - self._began))


class Rate:
    """A count, and its pace in the last minute."""

    __slots__ = ("_counts", "_window")

    def __init__(self, now: float) -> None:
        self._counts = [0]
        self._window = Window(self._counts, now)

    def inc(self, amount: int, now: float) -> None:
        if now >= self._window.turn_at:
            self._window.turn(now)
        self._counts[0] += amount

    @property
    def count(self) -> int:
        """Since the start."""
        return self._counts[0]

    def per_second(self, now: float) -> float:
        return self._window.gained(now)[0] / self._window.length_s(now)


class Distribution:
    """Values of one kind: seconds, or anything else that is positive.

    `bounds`: upper ends that an exporter needs exactly; finer ones are put between them.
    """

    __slots__ = ("_bounds", "_coarse", "_counts", "_window", "total")

    def __init__(self, bounds: Sequence[float], now: float) -> None:
        self._coarse = tuple(bounds)
        self._bounds = _refined(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._window = Window(self._counts, now)
        self.total = 0.0

    def observe(self, value: float, now: float) -> None:
        if now >= self._window.turn_at:
            self._window.turn(now)
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound, number of values up to it) since the start; the last bound is infinite."""
        found: list[tuple[float, int]] = []
        running, at = 0, 0
        for bound in self._coarse:
            end = bisect_left(self._bounds, bound) + 1
            running += sum(self._counts[at:end])
            at = end
            found.append((bound, running))
        return [*found, (float("inf"), sum(self._counts))]

    @property
    def count(self) -> int:
        """Since the start."""
        return sum(self._counts)

    def percentiles(self, now: float) -> Percentiles:
        """Of the last minute."""
        return percentiles([self], now)


def percentiles(distributions: Iterable[Distribution], now: float) -> Percentiles:
    """Of the last minute, over all of these; they have the same bounds."""
    return percentiles_of(bars(distributions, now))


def bars(distributions: Iterable[Distribution], now: float) -> list[Bar]:
    """The last minute as plain values, which other processes can add to theirs."""
    found = list(distributions)
    if not found:
        return []
    bounds = found[0]._bounds
    ends = [0.0, *bounds, bounds[-1]]
    merged = [sum(each) for each in zip(*(one._window.gained(now) for one in found), strict=True)]
    return [(ends[n], ends[n + 1], count) for n, count in enumerate(merged) if count]


def added(many: Iterable[Iterable[Bar]]) -> list[Bar]:
    """Bars over the same bounds, together."""
    total: dict[tuple[float, float], int] = {}
    for each in many:
        for low, high, count in each:
            total[low, high] = total.get((low, high), 0) + count
    return [(low, high, count) for (low, high), count in sorted(total.items())]


def percentiles_of(found: Sequence[Bar]) -> Percentiles:
    number = sum(count for _, _, count in found)
    if not number:
        return Percentiles(0, None, None, None)
    p50, p90, p99 = (_quantile(found, number * share) for share in (0.5, 0.9, 0.99))
    return Percentiles(number, p50, p90, p99)


def _quantile(found: Sequence[Bar], rank: float) -> float:
    """The value below which `rank` of the values are, as if they were even within their bucket."""
    below = 0
    for low, high, count in found:
        if below + count >= rank:
            return low + (high - low) * (rank - below) / count
        below += count
    return found[-1][1]


def _refined(bounds: Sequence[float]) -> list[float]:
    found = set(bounds)
    bound, last = bounds[0] / 16, bounds[-1]
    while bound < last:
        found.add(bound)
        bound *= _GROWTH
    return sorted(found)
