"""Goodput: which requests met their targets. Knows one finished request at a time, and no averages.

A failed request meets nothing. `itl_ms` holds when no more than one gap in a hundred is longer (the
request's own p99); a request of one token has no gaps and no TPOT, and meets both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from benchmarks.percentiles import percentile
from benchmarks.sample import Sample
from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper bounds in milliseconds, themselves allowed; None asks nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: float | None = None
    e2el_ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """From `ttft_ms=200,tpot_ms=50`."""
        names = [field.name for field in fields(cls)]
        targets: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in names:
                raise ConfigError(f"--slo: unknown target {name!r}; known: {', '.join(names)}")
            if name in targets:
                raise ConfigError(f"--slo: {name} is given twice")
            targets[name] = _milliseconds(name, value)
        return cls(**targets)

    def targets(self) -> dict[str, float]:
        """The targets that were set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def misses(self, sample: Sample) -> list[str]:
        """The targets that this request did not meet."""
        targets = self.targets()
        if not sample.ok:
            return list(targets)
        gaps = sorted(sample.itls_s)
        reached = {
            "ttft_ms": sample.ttft_s,
            "tpot_ms": sample.tpot_s,
            "itl_ms": percentile(gaps, 99) if gaps else None,
            "e2el_ms": sample.e2el_s,
        }
        return [name for name, limit in targets.items() if _over(reached[name], limit)]

    def met_by(self, sample: Sample) -> bool:
        return sample.ok and not self.misses(sample)


def _milliseconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--slo: {name} must be a number of milliseconds greater than 0")
    return value


def _over(seconds: float | None, limit_ms: float) -> bool:
    return seconds is not None and seconds * 1000.0 > limit_ms
