"""When each request is due, in seconds from the start of the run: a pure function of rate,
burstiness and seed.

Knows nothing of requests, clocks or the network.

    rate inf             everything at time 0
    burstiness 1         exponential gaps: a Poisson process
    burstiness otherwise gamma gaps with coefficient of variation 1 / sqrt(burstiness):
                         below 1 bursts, above 1 a steadier stream
    burstiness inf       equal gaps
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from common.errors import ConfigError

_STREAM = 1  # arrivals draw from their own stream, so that another data set does not move them


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """`count` rising times; the last is at exactly `count / rate`.

    The gaps are scaled to end there, so that two seeds offer the same load: with 50 Poisson gaps
    the offered rate would otherwise differ by 14 % from seed to seed. The shape of the gaps is not
    changed by it.
    """
    if not rate > 0:
        raise ConfigError("--request-rate must be greater than 0")
    if not burstiness > 0:
        raise ConfigError("--burstiness must be greater than 0")
    if math.isinf(rate):
        return [0.0] * count
    if math.isinf(burstiness):
        return [(index + 1) / rate for index in range(count)]
    gaps = np.random.default_rng([seed, _STREAM]).gamma(burstiness, size=count)
    times = np.cumsum(gaps)
    if count == 0 or times[-1] == 0.0:  # a tiny burstiness can underflow to one burst
        return [count / rate] * count
    return [float(t) for t in times * (count / rate / times[-1])]


def read_trace(path: Path) -> list[float]:
    """Arrival times from a file: one number of seconds per line, not falling; blank lines and #
    comments are skipped.
    """
    times: list[float] = []
    for number, line in enumerate(_lines(path), start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        try:
            at = float(text)
        except ValueError:
            raise ConfigError(f"--trace-file line {number}: not a number of seconds") from None
        if not (math.isfinite(at) and at >= (times[-1] if times else 0.0)):
            raise ConfigError(f"--trace-file line {number}: times must be finite and must not fall")
        times.append(at)
    if not times:
        raise ConfigError("--trace-file holds no times")
    return times


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --trace-file: {error}") from error
