"""`--disaggregate auto` beside `always` and `never`, on a simulated pair: the real decision and the
real estimates over made-up speeds. No process, no clock; the same seed gives the same day.

    python -m benchmarks.disaggregate --seed 1

P computes one prompt after the other. A step of D makes a token for each of its streams and
computes at most `CHUNK` tokens of local prompts, so each local token holds all streams up. What is
compared is the mean time from request to last token: it holds every wait and every stall.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from benchmarks.percentiles import mean, percentile
from proxy.disaggregation import Disaggregation
from proxy.estimates import Estimates
from proxy.policy import InstanceView, Pair, RequestFacts, Snapshot, Whole

CHUNK = 512
MODES: tuple[Literal["auto", "always", "never"], ...] = ("always", "never", "auto")


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a load, and the speeds it meets (seconds)."""

    rate: float  # requests per second
    share_long: float
    hand_over_s: float = 0.004  # and a thousandth of that per token
    prefill_s: float = 0.0005  # per token
    step_s: float = 0.025
    output_len: int = 60
    num_requests: int = 1500


class Load(Enum):
    SHORT_PROMPTS = Shape(rate=4.0, share_long=0.0)
    LIGHT_MIX = Shape(rate=0.5, share_long=0.3)
    MIX = Shape(rate=1.5, share_long=0.3)
    PREFILL_BOUND = Shape(rate=2.4, share_long=0.35)
    SLOW_WAY = Shape(rate=1.5, share_long=0.3, hand_over_s=0.2)
    SLOW_WAY_SHORT = Shape(rate=2.0, share_long=0.0, hand_over_s=0.4)


@dataclass(slots=True)
class Job:
    arrived: float
    num_prompt: int
    left: int  # tokens still to be made
    to_compute: int = 0  # of the prompt, on D
    tokens_at: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """`cost_s`: mean seconds from request to last token."""

    cost_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p99_s: float
    share_whole: float


class Day:
    """One load under one way of deciding."""

    def __init__(self, shape: Shape, policy: Disaggregation, seed: int) -> None:
        self._shape = shape
        self._policy = policy
        self._rng = random.Random(seed)
        self._estimates = Estimates()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._num_events = 0
        self._prefill_queue: deque[Job] = deque()
        self._streams: list[Job] = []  # on D, making tokens
        self._local: deque[Job] = deque()  # on D, prompts not yet computed
        self._is_stepping = False
        self._done: list[Job] = []
        self._num_whole = 0

    def run(self) -> Result:
        for at, num_prompt in self._arrivals():
            self._at(at, lambda now, n=num_prompt: self._arrive(n, now))  # type: ignore[misc]
        while self._events:
            now, _, action = heapq.heappop(self._events)
            action(now)
        ttfts = sorted(job.tokens_at[0] - job.arrived for job in self._done)
        gaps = sorted(
            b - a
            for job in self._done
            for a, b in zip(job.tokens_at, job.tokens_at[1:], strict=False)
        )
        return Result(
            mean([job.tokens_at[-1] - job.arrived for job in self._done]),
            percentile(ttfts, 50),
            percentile(ttfts, 99),
            percentile(gaps, 99),
            self._num_whole / len(self._done),
        )

    def _arrivals(self) -> Iterator[tuple[float, int]]:
        now = 0.0
        for _ in range(self._shape.num_requests):
            now += self._rng.expovariate(self._shape.rate)
            is_long = self._rng.random() < self._shape.share_long
            yield now, self._rng.randrange(1000, 3000) if is_long else self._rng.randrange(16, 128)

    def _at(self, time_s: float, action: Callable[[float], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (time_s, self._num_events, action))

    # --- the proxy -----------------------------------------------------------------------------

    def _arrive(self, num_prompt: int, now: float) -> None:
        job = Job(now, num_prompt, self._shape.output_len)
        if self._goes_whole(num_prompt, now):
            self._num_whole += 1
            job.to_compute = num_prompt
            self._local.append(job)
            self._step(now)
        else:
            self._prefill_queue.append(job)
            if len(self._prefill_queue) == 1:
                self._prefill(now)

    def _goes_whole(self, num_prompt: int, now: float) -> bool:
        if self._policy.mode == "never":
            return True
        route = self._policy.decide(
            Pair("p", "d"), self._snapshot(), RequestFacts(num_prompt), self._estimates, now
        )
        return isinstance(route, Whole)

    def _snapshot(self) -> Snapshot:
        queued_p = sum(job.num_prompt for job in self._prefill_queue)
        queued_d = sum(job.to_compute for job in self._local)
        num_d = len(self._streams) + len(self._local)
        return Snapshot(
            "m",
            (
                InstanceView(
                    "p", "prefill", "m", "f", "shm", 8192, 32, False,
                    queued_p, len(self._prefill_queue), 10_000, 10_000,
                ),
                InstanceView(
                    "d", "decode", "m", "f", "shm", 8192, 32, False,
                    queued_d, num_d, 10_000, 10_000,
                ),
            ),
        )  # fmt: skip

    # --- P -------------------------------------------------------------------------------------

    def _prefill(self, now: float) -> None:
        job = self._prefill_queue[0]
        took = self._noisy(job.num_prompt * self._shape.prefill_s)
        self._at(now + took, lambda then: self._prefilled(job, took, then))

    def _prefilled(self, job: Job, took: float, now: float) -> None:
        self._estimates.prefilled("p", job.num_prompt, took, now)
        self._token(job, now)
        way_s = self._noisy(self._shape.hand_over_s * (1.0 + job.num_prompt / 1000.0))
        self._at(now + way_s, lambda then: self._fetched(job, now, then))
        self._prefill_queue.popleft()
        if self._prefill_queue:
            self._prefill(now)

    def _fetched(self, job: Job, since: float, now: float) -> None:
        self._estimates.handed_over("p", "d", job.num_prompt, now - since, now)
        self._streams.append(job)
        self._step(now)

    # --- D -------------------------------------------------------------------------------------

    def _step(self, now: float) -> None:
        if self._is_stepping or not (self._streams or self._local):
            return
        self._is_stepping = True
        streams, budget, took, parts = list(self._streams), CHUNK, self._shape.step_s, []
        for job in self._local:
            part = min(budget, job.to_compute)
            budget -= part
            took += part * self._shape.prefill_s
            if part:
                parts.append((job, part))
        took = self._noisy(took)
        self._at(now + took, lambda then: self._stepped(streams, parts, took, then))

    def _stepped(
        self, streams: list[Job], parts: list[tuple[Job, int]], took: float, now: float
    ) -> None:
        self._is_stepping = False
        for job in streams:
            self._token(job, now)
            if not job.left:
                self._streams.remove(job)
        for job, part in parts:
            job.to_compute -= part
            if not job.to_compute:
                self._local.remove(job)
                self._estimates.prefilled("d", part, took, now)
                self._token(job, now)
                self._streams.append(job)
        self._step(now)

    def _token(self, job: Job, now: float) -> None:
        job.tokens_at.append(now)
        job.left -= 1
        if not job.left:
            self._done.append(job)

    def _noisy(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.9, 1.1)


def compare(load: Load, seed: int, itl_budget_s: float = 0.1) -> dict[str, Result]:
    return {mode: Day(load.value, Disaggregation(mode, itl_budget_s), seed).run() for mode in MODES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--itl-budget-ms", type=float, default=100.0)
    options = parser.parse_args()
    heads = ("mean", "TTFT p50", "TTFT p99", "ITL p99", "whole")
    print(f"{'load':<16}{'mode':<8}" + "".join(f"{head:>10}" for head in heads) + "   (seconds)")
    for load in Load:
        for mode, r in compare(load, options.seed, options.itl_budget_ms / 1e3).items():
            times = (r.cost_s, r.ttft_p50_s, r.ttft_p99_s, r.itl_p99_s)
            cells = "".join(f"{value:>10.3f}" for value in times)
            print(f"{load.name.lower():<16}{mode:<8}{cells}{r.share_whole:>10.0%}")


if __name__ == "__main__":
    main()
