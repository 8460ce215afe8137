"""What each API key may ask for per minute, as its clients see it: refusals and headers.

The sums are `common/admission/rate_limit.py`'s. A request counts when it comes, also one that is
then refused; its prompt when it is let in, its answer as it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from common.admission.rate_limit import UNITS, Buckets, RateLimits, Rates, Reading, Unit
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
        buckets: Buckets | None = None,
    ) -> None:
        """`default`: where a key's own terms say nothing. `buckets`: shared with others."""
        self._terms_of = terms_of
        self._default = default
        self._clock = clock
        self._limits = RateLimits(buckets)

    def weight_of(self, tenant: str) -> float:
        return self._terms_of(tenant).weight

    def counts_tokens(self, tenant: str) -> bool:
        return self._rates(tenant).tokens is not None

    def take_request(self, info: RequestInfo) -> None:
        """Raises RateLimited."""
        self._take(info, "requests", 1)

    def take_tokens(self, info: RequestInfo, num_tokens: int) -> None:
        """Of a prompt. Raises RateLimited."""
        self._take(info, "tokens", num_tokens)

    def spend_tokens(self, info: RequestInfo, num_tokens: int) -> None:
        """Of an answer; or less than none, of a prompt that was not let in."""
        rates, now = self._rates(info.tenant), self._clock()
        if rates.tokens is not None:
            self._limits.take(info.tenant, rates, "tokens", num_tokens, now)
            info.rate_readings = self._limits.read(info.tenant, rates, now)

    def _take(self, info: RequestInfo, unit: Unit, amount: int) -> None:
        rates, now = self._rates(info.tenant), self._clock()
        if rates.of(unit) is None:
            return
        wait_s = self._limits.take_if_enough(info.tenant, rates, unit, amount, now)
        info.rate_readings = self._limits.read(info.tenant, rates, now)
        if wait_s <= 0.0:
            return
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
