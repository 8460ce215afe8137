"""How long a prompt will take to its first token, from what earlier ones took. Plain arithmetic.

Two things are learnt. Once a prompt is sent out, its first token takes `a + b * tokens`, tokens
being its own and those before it (least squares, older samples fading). And while requests queue,
the queue moves at some rate, whatever holds it up: prefill, seats or room for KV.
"""

from __future__ import annotations

from dataclasses import dataclass

FADING = 0.97  # of a sample's weight, with each that comes after it
MIN_SAMPLES = 3.0


@dataclass(slots=True)
class PromptTime:
    """Seconds to the first token, once sent out."""

    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        x, y = float(num_tokens), seconds
        self._n = FADING * self._n + 1.0
        self._x = FADING * self._x + x
        self._y = FADING * self._y + y
        self._xx = FADING * self._xx + x * x
        self._xy = FADING * self._xy + x * y

    @property
    def is_known(self) -> bool:
        return self._n >= MIN_SAMPLES * FADING

    @property
    def line(self) -> tuple[float, float]:
        """(seconds at least, seconds per token), neither below zero."""
        if not self.is_known:
            return 0.0, 0.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if spread <= 1e-9 * max(1.0, mean_x * mean_x):  # all alike: blame the tokens
            return 0.0, mean_y / max(1.0, mean_x)
        slope = max(0.0, (self._xy / self._n - mean_x * mean_y) / spread)
        base = mean_y - slope * mean_x
        if base < 0.0:
            return 0.0, mean_y / max(1.0, mean_x)
        return base, slope


@dataclass(slots=True)
class QueueFlow:
    """Tokens per second that leave a queue while there is one."""

    _tokens: float = 0.0
    _seconds: float = 0.0
    _last: float | None = None  # when somebody left, or the queue began

    def began(self, now: float) -> None:
        self._last = now

    def left(self, num_tokens: int, now: float) -> None:
        if self._last is not None:
            self._tokens = FADING * self._tokens + num_tokens
            self._seconds = FADING * self._seconds + max(0.0, now - self._last)
        self._last = now

    @property
    def rate(self) -> float | None:
        """None: nothing is known yet."""
        return self._tokens / self._seconds if self._seconds > 0.0 and self._tokens else None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one request that has come just now."""

    wait_s: float  # until its prompt is begun
    own_s: float  # from then to its first token


def forecast(
    prompts: PromptTime, flow: QueueFlow, num_tokens: int, queued_before: int, backlog: int
) -> Forecast:
    """`queued_before`: waiting tokens that go first; `backlog`: tokens sent out and not computed,
    where they are fewest."""
    base, per_token = prompts.line
    wait_s = backlog * per_token
    if queued_before:
        rate = flow.rate
        wait_s += queued_before / rate if rate else queued_before * per_token
    return Forecast(wait_s, base + num_tokens * per_token)


def excess_s(expected: Forecast, slo_s: float) -> float:
    """By how much the request would wait too long; 0 or less: it may come in.

    A prompt that alone takes longer than the target is let in when next to nothing is before it.
    """
    return expected.wait_s - max(slo_s - expected.own_s, slo_s / 10)
