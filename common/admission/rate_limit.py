"""How much a tenant may ask for per minute: token buckets over requests and over tokens. Plain data
with time as a parameter.

A bucket holds one minute's worth and fills evenly. Requests are taken whole. Tokens are taken as
they become known: the prompt's before it runs, the answer's as they come, and for these the bucket
may go below zero; it then has to fill before the next request. A prompt larger than the whole
bucket passes when the bucket is full, so nobody is refused for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

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


Change = Callable[[Bucket], float]


class Buckets(Protocol):
    """Where the buckets are."""

    def change(self, tenant: str, unit: Unit, limit: int, now: float, by: Change) -> float:
        """Fill one (a full one if there was none), let `by` change it, give what `by` gives.
        Nobody else comes in between."""
        ...


class OwnBuckets:
    """In this process alone."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, Unit], Bucket] = {}

    def change(self, tenant: str, unit: Unit, limit: int, now: float, by: Change) -> float:
        bucket = self._buckets.setdefault((tenant, unit), Bucket(float(limit), now))
        bucket.fill(limit, now)
        return by(bucket)


class RateLimits:
    """One bucket per tenant and unit, made when first needed."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        self._buckets = buckets or OwnBuckets()

    def take_if_enough(
        self, tenant: str, rates: Rates, unit: Unit, amount: int, now: float
    ) -> float:
        """0: taken. Else nothing is, and the seconds until it could be."""
        limit = rates.of(unit)
        if limit is None:
            return 0.0

        def take(bucket: Bucket) -> float:
            missing = min(amount, limit) - bucket.level
            if missing > 0.0:
                return missing * MINUTE_S / limit
            bucket.level -= amount
            return 0.0

        return self._buckets.change(tenant, unit, limit, now, take)

    def take(self, tenant: str, rates: Rates, unit: Unit, amount: int, now: float) -> None:
        """Whether there is enough or not; less than nothing is given back."""

        def spend(bucket: Bucket) -> float:
            bucket.level -= amount
            return 0.0

        if (limit := rates.of(unit)) is not None:
            self._buckets.change(tenant, unit, limit, now, spend)

    def read(self, tenant: str, rates: Rates, now: float) -> list[Reading]:
        """Of what is limited at all."""
        found = []
        for unit in UNITS:
            limit = rates.of(unit)
            if limit is not None:
                level = self._buckets.change(tenant, unit, limit, now, lambda b: b.level)
                full_in_s = (limit - level) * MINUTE_S / limit
                found.append(Reading(unit, limit, max(0, int(level)), full_in_s))
        return found
