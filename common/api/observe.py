"""Request metrics, measured where the client feels them: from request received to text sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common import waterfall
from common.errors import XpydError
from common.metrics import SECONDS, TOKENS, Metrics
from common.recent import WINDOW_S, added, percentiles_of

Clock = Callable[[], float]
Gained = dict[str, Any]  # plain values: `together` adds them up
_REASONS = frozenset({"stop", "length", "repetition", "abort", "error"})
_STAGE_SECONDS = (0.00001, 0.0001, 0.0005, *SECONDS)
_ITL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, *SECONDS[7:])


class RequestMetrics:
    """One per app. Names as vLLM's."""

    def __init__(self, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.num_running = 0  # sequences, as `/load` tells
        self._ttft = metrics.distribution(
            "time_to_first_token_seconds", "Request received to first token.", SECONDS, (), clock
        )
        self._itl = metrics.distribution(
            "inter_token_latency_seconds",
            "Between two neighbouring tokens.",
            _ITL_SECONDS,
            (),
            clock,
        )
        self._stages = metrics.distribution(
            "request_stage_seconds",
            "Where the time to the first and to the second token went.",
            _STAGE_SECONDS,
            ("stage",),
            clock,
        )
        self._tpot = metrics.histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first, per request.",
            _ITL_SECONDS,
        )
        self._e2e = metrics.histogram(
            "e2e_request_latency_seconds", "Request received to last token.", SECONDS
        )
        self._prompt = metrics.rate("prompt_tokens", "Prompt tokens of started requests.", clock)
        self._generated = metrics.rate("generation_tokens", "Tokens sent to clients.", clock)
        self._started = metrics.rate("requests_started", "Requests with a first token.", clock)
        self._request_prompt = metrics.histogram(
            "request_prompt_tokens", "Prompt tokens per request.", TOKENS
        )
        self._request_generated = metrics.histogram(
            "request_generation_tokens", "Generated tokens per request.", TOKENS
        )
        self._success = metrics.counter(
            "request_success", "Finished requests.", labels=("finished_reason",)
        )
        self._expired = metrics.counter(
            "deadlines_missed",
            "Requests ended by their own deadline, by how far they had come.",
            labels=("stage",),
        )
        self._rejections = metrics.counter(
            "rejections", "Requests refused before the first token.", labels=("reason",)
        )

    def rejected(self, error: XpydError) -> None:
        """`error.code` comes from our own tree, so the label set is fixed."""
        self._rejections.labels(error.code).inc()

    def expired(self, stage: str) -> None:
        """`stage`: queue, prefill or decode."""
        self._expired.labels(stage).inc()

    def observe(self, model_name: str, prompt_len: int, started: float) -> Observation:
        return Observation(self, model_name, prompt_len, started)

    def recent(self) -> dict[str, Any]:
        """The last minute, for people: seconds, and things per second."""
        return together([self.gained()])

    def gained(self) -> Gained:
        """The same before percentiles are taken."""
        stages = {name: self._stages.recent(name) for name in waterfall.STAGES}
        return {
            "requests_per_s": self._started.per_second(),
            "prompt_tokens_per_s": self._prompt.per_second(),
            "generation_tokens_per_s": self._generated.per_second(),
            "ttft": self._ttft.recent(),
            "itl": self._itl.recent(),
            "stages": {name: found for name, found in stages.items() if found},
        }


def together(many: Sequence[Gained]) -> dict[str, Any]:
    """What several processes saw in the last minute, as if it had been one."""
    found: dict[str, Any] = {"window_s": WINDOW_S}
    for name in ("requests_per_s", "prompt_tokens_per_s", "generation_tokens_per_s"):
        found[name] = sum(each[name] for each in many)
    for name in ("ttft", "itl"):
        found[name] = asdict(percentiles_of(added(each[name] for each in many)))
    stages = {name: [each["stages"].get(name, []) for each in many] for name in waterfall.STAGES}
    found["stages"] = {
        name: asdict(percentiles_of(added(bars))) for name, bars in stages.items() if any(bars)
    }
    return found


class Observation:
    """One sequence, from submission to its one end. `closed` without `finished` is an abort."""

    def __init__(
        self, metrics: RequestMetrics, model_name: str, prompt_len: int, started: float
    ) -> None:
        self._metrics = metrics
        self._model_name = model_name
        self._prompt_len = prompt_len
        self._started = started
        self._first = self._last = 0.0
        self._num_tokens = 0
        self._reason: str | None = None
        self._tokenize_s = self._waited_s = 0.0
        self._itl = metrics._itl.labels(model_name=model_name)
        self._generated = metrics._generated.labels(model_name=model_name)
        self.stages: dict[str, float] = {}  # where the time went, as far as it is known

    def submitted(self) -> None:
        self._metrics.num_running += 1
        self._tokenize_s = self._metrics.clock() - self._started

    def admitted(self) -> None:
        """Its wait in the front end is over: it goes to an engine now."""
        self._waited_s = self._metrics.clock() - self._started - self._tokenize_s

    def timed(self, told: Mapping[str, float]) -> None:
        """An event that says where time went arrived now; before its tokens are observed."""
        now = self._metrics.clock()
        if not self._num_tokens:
            found = waterfall.until_first(
                told, self._tokenize_s, self._waited_s, now - self._started
            )
        else:
            found = waterfall.after_first(told, now - self._first)
        for stage, seconds in found.items():
            if stage not in self.stages:
                self.stages[stage] = seconds
                if stage in waterfall.STAGES:
                    stages = self._metrics._stages
                    stages.labels(stage, model_name=self._model_name).observe(seconds, now)

    def tokens(self, count: int) -> None:
        """An event with `count` tokens arrived now."""
        if not count:
            return
        now = self._metrics.clock()
        if self._num_tokens:
            self._itl.observe((now - self._last) / count, now)
        else:
            self._first = now
            metrics, model = self._metrics, self._model_name
            metrics._ttft.labels(model_name=model).observe(now - self._started, now)
            metrics._started.labels(model_name=model).inc(1, now)
            metrics._prompt.labels(model_name=model).inc(self._prompt_len, now)
        self._last = now
        self._num_tokens += count
        self._generated.inc(count, now)

    def finished(self, reason: str) -> None:
        self._reason = reason if reason in _REASONS else "error"

    def closed(self) -> None:
        self._metrics.num_running -= 1
        if self._reason == "error" and not self._num_tokens:
            return  # a refusal: counted in `rejections`
        metrics, model = self._metrics, self._model_name
        metrics._success.labels(self._reason or "abort", model_name=model).inc()
        if self._reason is None:
            return
        metrics._e2e.labels(model_name=model).observe(metrics.clock() - self._started)
        metrics._request_prompt.labels(model_name=model).observe(self._prompt_len)
        metrics._request_generated.labels(model_name=model).observe(self._num_tokens)
        if self._num_tokens > 1:
            per_token = (self._last - self._first) / (self._num_tokens - 1)
            metrics._tpot.labels(model_name=model).observe(per_token)
