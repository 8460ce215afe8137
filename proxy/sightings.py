"""What the proxy saw of its requests: where they waited, which pair handed over how fast, what went
wrong. For people; decides nothing. Bounded, and time is a parameter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from common import waterfall
from common.metrics import SECONDS
from common.recent import Bar, Distribution, Rate, bars

MAX_PAIRS = 1024
MAX_FAILURES = 100
_MAX_TEXT = 300  # characters of one message


@dataclass(slots=True)
class Trip:
    """One request's way to the instance that gives its first token. Monotonic seconds."""

    began: float
    asked_at: float = 0.0  # when the last route was asked for
    route_s: float = 0.0
    pair: tuple[str, str] | None = None  # of the last route: prefill and decode

    def routed(self, asked_at: float, now: float, chosen: tuple[str, ...]) -> None:
        self.asked_at, self.route_s = asked_at, now - asked_at
        self.pair = (chosen[0], chosen[1]) if len(chosen) == 2 else None

    def timings(self) -> dict[str, float]:
        """As `TokenEvent.timings`."""
        waited = max(0.0, self.asked_at - self.began)
        return {waterfall.PROXY_QUEUE: waited, waterfall.ROUTE: self.route_s}


@dataclass(frozen=True, slots=True)
class PairSeen:
    """Hand-overs from one prefill to one decode instance in the last minute."""

    prefill: str
    decode: str
    transfer: list[Bar]  # seconds of copying
    bytes_per_s: float  # over the whole minute, not while copying


class _Pair:
    def __init__(self, now: float) -> None:
        self.transfer = Distribution(SECONDS, now)
        self.moved = Rate(now)
        self.last = now


class Pairs:
    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], _Pair] = {}

    def handed_over(self, pair: tuple[str, str], told: Mapping[str, float], now: float) -> None:
        """`told`: `TokenEvent.timings` of the decode instance's first event."""
        seconds, size = told.get(waterfall.TRANSFER), told.get(waterfall.KV_BYTES, 0.0)
        if seconds is None or not 0.0 <= seconds < 1e9 or not 0.0 <= size < 1e15:
            return
        seen = self._pairs.get(pair)
        if seen is None:
            if len(self._pairs) >= MAX_PAIRS:
                del self._pairs[min(self._pairs, key=lambda each: self._pairs[each].last)]
            seen = self._pairs[pair] = _Pair(now)
        seen.last = now
        seen.transfer.observe(seconds, now)
        seen.moved.inc(int(size), now)

    def recent(self, instances: Collection[str], now: float) -> list[PairSeen]:
        """Pairs of `instances` with a hand-over in the last minute."""
        found = []
        for (prefill, decode), seen in sorted(self._pairs.items()):
            transfer = bars([seen.transfer], now)
            if transfer and prefill in instances and decode in instances:
                pace = seen.moved.per_second(now)
                found.append(PairSeen(prefill, decode, transfer, pace))
        return found


@dataclass(slots=True)
class Failure:
    """One thing that went wrong, or several in a row that look alike."""

    at: float  # seconds since 1970, of the last of them
    what: str
    instance: str  # "" if it was none's
    request_id: str  # ours, of the last of them; "" if there was none
    message: str
    count: int = 1


class Failures:
    """The last ones, newest first. Messages are our own words: no prompts, keys or handles."""

    def __init__(self) -> None:
        self._ring: deque[Failure] = deque(maxlen=MAX_FAILURES)

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._ring)

    def note(
        self, at: float, what: str, message: str, *, instance: str = "", request_id: str = ""
    ) -> None:
        message, instance = message[:_MAX_TEXT], instance[:_MAX_TEXT]
        last = self._ring[0] if self._ring else None
        if last and (last.what, last.instance, last.message) == (what, instance, message):
            last.at, last.request_id, last.count = at, request_id, last.count + 1
        else:
            self._ring.appendleft(Failure(at, what, instance, request_id, message))
