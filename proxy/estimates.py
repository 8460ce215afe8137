"""What prompts and hand-overs take, learnt from those that were observed. Plain data, no clock.

A `Line` is seconds as a function of tokens, fitted by least squares in which old observations
count less. An instance or a pair that has not been seen lately is judged by the whole fleet's line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

HALF_LIFE_S = 60.0  # after which an observation counts half, once newer ones have come
PER_OBSERVATION = 0.97  # what is left of its weight with each newer one
FRESH_S = 120.0  # then others may know better
OUTLIER = 4.0  # an observation counts as at most so many times what was expected
MIN_TO_JUDGE = 4.0  # weight below which nothing is taken for an outlier
_FLATTEN = 0.01  # how much less than a free fit the constant part is believed


@dataclass(frozen=True, slots=True)
class Line:
    """Sums over weighted observations (tokens in thousands, seconds)."""

    weight: float = 0.0
    tokens: float = 0.0
    tokens_squared: float = 0.0
    total_s: float = 0.0
    tokens_by_s: float = 0.0
    updated_at: float = 0.0

    def after(self, num_tokens: int, seconds: float, now: float) -> Line:
        """With one more observation."""
        if self.weight >= MIN_TO_JUDGE:
            seconds = min(seconds, max(OUTLIER * self.seconds(num_tokens), 1e-4))
        kept = PER_OBSERVATION * 0.5 ** (max(0.0, now - self.updated_at) / HALF_LIFE_S)
        x = num_tokens / 1000.0
        return Line(
            kept * self.weight + 1.0,
            kept * self.tokens + x,
            kept * self.tokens_squared + x * x,
            kept * self.total_s + seconds,
            kept * self.tokens_by_s + x * seconds,
            now,
        )

    def seconds(self, num_tokens: float) -> float:
        """Expected; never negative, never less for more tokens."""
        base, slope = self._fit()
        return base + slope * max(0.0, num_tokens) / 1000.0

    def tokens_within(self, seconds: float) -> float:
        """How many tokens take at most so long; may be infinite."""
        base, slope = self._fit()
        if seconds < base:
            return 0.0
        return (seconds - base) / slope * 1000.0 if slope > 0.0 else float("inf")

    def _fit(self) -> tuple[float, float]:
        """(seconds, seconds per thousand tokens), neither negative."""
        if not self.weight:
            return 0.0, 0.0
        weight = self.weight * (1.0 + _FLATTEN)
        determinant = weight * self.tokens_squared - self.tokens**2
        if determinant <= 1e-12 * weight * self.tokens_squared:  # all without tokens
            return self.total_s / self.weight, 0.0
        slope = (weight * self.tokens_by_s - self.tokens * self.total_s) / determinant
        base = (self.tokens_squared * self.total_s - self.tokens * self.tokens_by_s) / determinant
        if base < 0.0:
            return 0.0, self.tokens_by_s / self.tokens_squared
        if slope < 0.0:
            return self.total_s / self.weight, 0.0
        return base, slope


Pair = tuple[str, str]


@dataclass(slots=True)
class Estimates:
    """Of one proxy. Who reads it passes the time."""

    _prefill: dict[str, Line] = field(default_factory=dict)  # by instance
    _hand_over: dict[Pair, Line] = field(default_factory=dict)  # by (prefill, decode)
    _any_prefill: Line = Line()
    _any_hand_over: Line = Line()

    def prefilled(self, instance_id: str, num_tokens: int, seconds: float, now: float) -> None:
        """An instance computed so many tokens of a prompt in so many seconds, queueing not
        counted."""
        known = self._prefill.get(instance_id, Line())
        self._prefill[instance_id] = known.after(num_tokens, seconds, now)
        self._any_prefill = self._any_prefill.after(num_tokens, seconds, now)

    def handed_over(
        self, prefill: str, decode: str, num_tokens: int, seconds: float, now: float
    ) -> None:
        """So long after P's first token, of a prompt of so many tokens, came D's first."""
        pair = prefill, decode
        self._hand_over[pair] = self._hand_over.get(pair, Line()).after(num_tokens, seconds, now)
        self._any_hand_over = self._any_hand_over.after(num_tokens, seconds, now)

    def prefill(self, instance_id: str, now: float) -> Line | None:
        """None as long as nobody has been seen to prefill."""
        return _known(self._prefill.get(instance_id), self._any_prefill, now)

    def hand_over(self, prefill: str, decode: str, now: float) -> Line | None:
        return _known(self._hand_over.get((prefill, decode)), self._any_hand_over, now)

    def keep(self, instance_ids: Iterable[str]) -> None:
        """Forget what is known of others: they have gone."""
        kept = set(instance_ids)
        self._prefill = {i: line for i, line in self._prefill.items() if i in kept}
        self._hand_over = {p: line for p, line in self._hand_over.items() if kept.issuperset(p)}


def _known(own: Line | None, anybodys: Line, now: float) -> Line | None:
    if own is not None and now - own.updated_at < FRESH_S:
        return own
    return anybodys if anybodys.weight else own
