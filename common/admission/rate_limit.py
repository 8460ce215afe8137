"""How much a tenant may ask for per minute: token buckets over requests and over tokens. Plain data
with time as a parameter.

A bucket holds one minute's worth and fills evenly. Requests are taken whole. Tokens are taken as
they become known: the prompt's before it runs, the answer's as they come, and for these the bucket
may go below zero; it then has to fill before the next request. A prompt larger than the whole
bucket passes when the bucket is full, so nobody is refused for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MINUTE_S = 60.0

Unit = Literal["requests", "tokens"]
UNITS: tuple[Unit, ...] = ("requests", "tokens")


@dataclass(frozen=True, slots=True)
class Rates:
    """Per minute; None: as much as one likes."""

    requests: int | None = None
    tokens: int | None = None

    def of(self, unit: Unit) -> int | None:
        return self.requests if unit == "requests" else self.tokens


@dataclass(frozen=True, slots=True)
class Reading:
    """How one bucket stands."""

    unit: Unit
    limit: int
    remaining: int  # whole ones, never below zero
    full_in_s: float


@dataclass(slots=True)
class Bucket:
    level: float
    at: float

    def fill(self, limit: int, now: float) -> None:
        """`limit` may have changed since the last time."""
        gained = max(0.0, now - self.at) * limit / MINUTE_S
        self.level = min(float(limit), self.level + gained)
        self.at = max(self.at, now)


@dataclass(slots=True)
class RateLimits:
    """One bucket per tenant and unit, made when first needed."""

    _buckets: dict[tuple[str, Unit], Bucket] = field(default_factory=dict)

    def wait_s(self, tenant: str, rates: Rates, unit: Unit, amount: int, now: float) -> float:
        """Seconds until `amount` could be taken; 0: now."""
        limit = rates.of(unit)
        if limit is None:
            return 0.0
        bucket = self._bucket(tenant, unit, limit, now)
        missing = min(amount, limit) - bucket.level
        return max(0.0, missing * MINUTE_S / limit)

    def take(self, tenant: str, rates: Rates, unit: Unit, amount: int, now: float) -> None:
        """Whether there is enough or not: ask `wait_s` before."""
        limit = rates.of(unit)
        if limit is not None:
            self._bucket(tenant, unit, limit, now).level -= amount

    def read(self, tenant: str, rates: Rates, now: float) -> list[Reading]:
        """Of what is limited at all."""
        found = []
        for unit in UNITS:
            limit = rates.of(unit)
            if limit is not None:
                level = self._bucket(tenant, unit, limit, now).level
                full_in_s = (limit - level) * MINUTE_S / limit
                found.append(Reading(unit, limit, max(0, int(level)), full_in_s))
        return found

    def _bucket(self, tenant: str, unit: Unit, limit: int, now: float) -> Bucket:
        bucket = self._buckets.setdefault((tenant, unit), Bucket(float(limit), now))
        bucket.fill(limit, now)
        return bucket
