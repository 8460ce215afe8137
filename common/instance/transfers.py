"""What an instance's KV loads cost and why they failed, whichever roles it plays in its life.

Knows no connector: it is told in the words of `common/waterfall.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from common.metrics import SECONDS, Metrics
from common.recent import Distribution, Rate
from common.waterfall import EXPOSED, KV_BLOCKS, KV_BYTES, TRANSFER

_BYTES = tuple(float(step * 10**power) for power in range(4, 11) for step in (1, 2, 5))
_BLOCKS = tuple(float(2**power) for power in range(14))
_STAGE_SECONDS = (0.0001, 0.0005, *SECONDS)


class Transfers:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        now = clock()
        self._copying = Distribution(_STAGE_SECONDS, now)
        self._exposed = Distribution(_STAGE_SECONDS, now)
        self._bytes = Distribution(_BYTES, now)
        self._blocks = Distribution(_BLOCKS, now)
        self._recent_bytes = Rate(now)
        self._recent_us = Rate(now)
        self._failures: Counter[str] = Counter()

    def loaded(self, told: Mapping[str, float]) -> None:
        now = self._clock()
        self._copying.observe(told[TRANSFER], now)
        self._exposed.observe(told[EXPOSED], now)
        self._bytes.observe(told[KV_BYTES], now)
        self._blocks.observe(told[KV_BLOCKS], now)
        self._recent_bytes.inc(int(told[KV_BYTES]), now)
        self._recent_us.inc(round(told[TRANSFER] * 1e6), now)

    def failed(self, cause: str) -> None:
        """`cause`: an error's code, of which there is a fixed set."""
        self._failures[cause] += 1

    def bandwidth(self) -> float:
        """Bytes per second of copying, in the last minute; 0 without any."""
        now = self._clock()
        pace_us = self._recent_us.per_second(now)
        return self._recent_bytes.per_second(now) / pace_us * 1e6 if pace_us else 0.0

    def register(self, metrics: Metrics) -> None:
        metrics.distribution_from(
            "kv_transfer_time_seconds", "Copying the KV of one request.", self._copying
        )
        metrics.distribution_from(
            "kv_transfer_exposed_seconds",
            "From the end of a prefill to its KV confirmed here.",
            self._exposed,
        )
        metrics.distribution_from("kv_transfer_bytes", "Copied for one request.", self._bytes)
        metrics.distribution_from("kv_transfer_blocks", "Copied for one request.", self._blocks)
        metrics.gauge(
            "kv_transfer_bandwidth_bytes_per_second",
            "While copying, over the last minute.",
            self.bandwidth,
        )
        metrics.counters_from(
            "kv_transfer_failures",
            "KV loads that failed, by cause; the prompt was computed here instead.",
            lambda: {(cause,): count for cause, count in self._failures.items()},
            labels=("cause",),
        )
