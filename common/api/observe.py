"""Request metrics, measured where the client feels them: from request received to text sent."""

from __future__ import annotations

import time
from collections.abc import Callable

from common.errors import XpydError
from common.metrics import SECONDS, TOKENS, Metrics

Clock = Callable[[], float]
_REASONS = frozenset({"stop", "length", "repetition", "abort", "error"})
_ITL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, *SECONDS[7:])


class RequestMetrics:
    """One per app. Names as vLLM's."""

    def __init__(self, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.num_running = 0  # sequences, as `/load` tells
        self._ttft = metrics.histogram(
            "time_to_first_token_seconds", "Request received to first token.", SECONDS
        )
        self._itl = metrics.histogram(
            "inter_token_latency_seconds", "Between two neighbouring tokens.", _ITL_SECONDS
        )
        self._tpot = metrics.histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first, per request.",
            _ITL_SECONDS,
        )
        self._e2e = metrics.histogram(
            "e2e_request_latency_seconds", "Request received to last token.", SECONDS
        )
        self._prompt = metrics.counter("prompt_tokens", "Prompt tokens of started requests.")
        self._generated = metrics.counter("generation_tokens", "Tokens sent to clients.")
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
        self._itl = metrics._itl.labels(model_name=model_name)
        self._generated = metrics._generated.labels(model_name=model_name)

    def submitted(self) -> None:
        self._metrics.num_running += 1

    def tokens(self, count: int) -> None:
        """An event with `count` tokens arrived now."""
        if not count:
            return
        now = self._metrics.clock()
        if self._num_tokens:
            self._itl.observe((now - self._last) / count)
        else:
            self._first = now
            metrics, model = self._metrics, self._model_name
            metrics._ttft.labels(model_name=model).observe(now - self._started)
            metrics._prompt.labels(model_name=model).inc(self._prompt_len)
        self._last = now
        self._num_tokens += count
        self._generated.inc(count)

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
