"""What each API key may ask for per minute, as its clients see it: refusals and headers.

The sums are `common/admission/rate_limit.py`'s. A request counts when it comes, also one that is
then refused; its prompt when it is let in, its answer as it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from common.admission.rate_limit import UNITS, RateLimits, Rates, Reading, Unit
from common.api.context import RequestInfo
from common.api.key_ring import Terms
from common.errors import RateLimited

RATE_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}" for unit in UNITS for what in ("limit", "remaining", "reset")
)


class Limiter:
    def __init__(
        self,
        terms_of: Callable[[str], Terms],
        default: Rates,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`default`: where a key's own terms say nothing."""
        self._terms_of = terms_of
        self._default = default
        self._clock = clock
        self._limits = RateLimits()

    def weight_of(self, tenant: str) -> float:
        return self._terms_of(tenant).weight

    def counts_tokens(self, tenant: str) -> bool:
        return self._rates(tenant).tokens is not None

    def take_request(self, info: RequestInfo) -> None:
        """Raises RateLimited."""
        self._check(info, "requests", 1)
        self.spend(info, "requests", 1)

    def check_tokens(self, info: RequestInfo, num_tokens: int) -> None:
        """Raises RateLimited."""
        self._check(info, "tokens", num_tokens)

    def spend(self, info: RequestInfo, unit: Unit, amount: int) -> None:
        rates = self._rates(info.tenant)
        if rates.of(unit) is not None:
            now = self._clock()
            self._limits.take(info.tenant, rates, unit, amount, now)
            info.rate_readings = self._limits.read(info.tenant, rates, now)

    def _check(self, info: RequestInfo, unit: Unit, amount: int) -> None:
        rates, now = self._rates(info.tenant), self._clock()
        wait_s = self._limits.wait_s(info.tenant, rates, unit, amount, now)
        if wait_s <= 0.0:
            return
        info.rate_readings = self._limits.read(info.tenant, rates, now)
        error = RateLimited(
            f"rate limit reached: {rates.of(unit)} {unit} per minute; try again in {_span(wait_s)}"
        )
        error.type, error.retry_after_s = unit, wait_s
        raise error

    def _rates(self, tenant: str) -> Rates:
        own, default = self._terms_of(tenant).rates, self._default
        return Rates(
            default.requests if own.requests is None else own.requests,
            default.tokens if own.tokens is None else own.tokens,
        )


def rate_headers(readings: Sequence[Reading]) -> list[tuple[bytes, bytes]]:
    """OpenAI's names."""
    headers = []
    for reading in readings:
        values = reading.limit, reading.remaining, _span(reading.full_in_s)
        for what, value in zip(("limit", "remaining", "reset"), values, strict=True):
            headers.append((f"x-ratelimit-{what}-{reading.unit}".encode(), str(value).encode()))
    return headers


def _span(seconds: float) -> str:
    """As OpenAI writes them: 6m0s, 1.5s, 20ms."""
    if seconds < 1.0:
        return f"{int(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60.0)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
