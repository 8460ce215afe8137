"""Samples in, summary and table out: pure. Knows no HTTP and no files.

The summary's names are those of `vllm bench serve` 0.32 wherever it has one, so that its tools read
ours. What we count otherwise is said in docs/benchmarking.md; a value that does not exist is null,
not 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.client_cost import ClientCost
from benchmarks.percentiles import deviation, mean, median, percentile
from benchmarks.sample import Sample
from benchmarks.slo import Slo

_MAX_REASONS = 20


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a run left behind."""

    samples: Sequence[Sample]  # in request order
    started_s: float
    duration_s: float
    cost: ClientCost
    num_cancelled: int = 0  # in flight when the run was interrupted
    is_interrupted: bool = False

    @property
    def completed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.ok]

    @property
    def failed(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.ok]


_VALUES: dict[str, Callable[[Sample], Sequence[float | None]]] = {
    "ttft": lambda sample: (sample.ttft_s,),
    "tpot": lambda sample: (sample.tpot_s,),
    "itl": lambda sample: sample.itls_s,
    "e2el": lambda sample: (sample.e2el_s,),
    "client_queue_time": lambda sample: (sample.queue_s,),
}
METRICS = tuple(_VALUES)


def summarize(
    run: Run, *, metrics: Sequence[str], percentiles: Sequence[float], slo: Slo | None
) -> dict[str, Any]:
    """The result's half of the summary; the caller puts what was asked in front of it."""
    done = run.completed
    total_input = sum(sample.input_tokens for sample in done)
    total_output = sum(sample.output_tokens for sample in done)
    good = None if slo is None else sum(slo.met_by(sample) for sample in done)
    summary: dict[str, Any] = {
        "duration": run.duration_s,
        "completed": len(done),
        "failed": len(run.failed),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": _rate(len(done), run),
        "request_goodput": None if good is None else _rate(good, run),
        "output_throughput": _rate(total_output, run),
        "total_token_throughput": _rate(total_input + total_output, run),
        "max_output_tokens_per_s": _peak_tokens(done),
        "max_concurrent_requests": _peak_requests(run.samples),
    }
    for name in metrics:
        summary |= _latency(name, done, percentiles)
    return summary | _ours(run, slo, good)


def _rate(count: int, run: Run) -> float:
    return count / run.duration_s if run.duration_s > 0 else 0.0


def _latency(name: str, done: Sequence[Sample], percentiles: Sequence[float]) -> dict[str, Any]:
    values = sorted(1000.0 * v for sample in done for v in _VALUES[name](sample) if v is not None)
    found: dict[str, Any] = {
        f"mean_{name}_ms": mean(values) if values else None,
        f"median_{name}_ms": median(values) if values else None,
        f"std_{name}_ms": deviation(values) if values else None,
    }
    for q in percentiles:
        found[f"p{q:g}_{name}_ms"] = percentile(values, q) if values else None
    return found


def _ours(run: Run, slo: Slo | None, good: int | None) -> dict[str, Any]:
    """Fields that vLLM's bench does not have."""
    ended = len(run.samples)
    lags = sorted(1000.0 * sample.lag_s for sample in run.samples)
    chunks = sum(len(sample.arrivals_s) for sample in run.completed)
    tokens = sum(sample.output_tokens for sample in run.completed)
    return {
        "slo": None if slo is None else slo.targets(),
        "slo_attainment": None if good is None or not ended else good / ended,
        "slo_misses": None if slo is None else _misses(run.samples, slo),
        "error_counts": dict(Counter(s.error for s in run.failed).most_common(_MAX_REASONS)),
        "interrupted": run.is_interrupted,
        "cancelled": run.num_cancelled,
        "uncounted": sum(not sample.is_counted for sample in run.completed),
        "short_answers": sum(s.output_tokens < s.wanted_tokens for s in run.completed),
        "tokens_per_chunk": tokens / chunks if chunks else None,
        "p99_schedule_lag_ms": percentile(lags, 99) if lags else None,
        "max_schedule_lag_ms": lags[-1] if lags else None,
        "client_loop_lag_p99_ms": 1000.0 * run.cost.loop_lag_p99_s,
        "client_loop_lag_max_ms": 1000.0 * run.cost.loop_lag_max_s,
        "client_cpu_fraction": run.cost.cpu_fraction,
    }


def _misses(samples: Sequence[Sample], slo: Slo) -> dict[str, int]:
    """How many requests missed each target; one request may miss several."""
    counts = Counter(name for sample in samples for name in slo.misses(sample))
    return {name: counts[name] for name in slo.targets()}


def _peak_tokens(done: Sequence[Sample]) -> float | None:
    """Most tokens in any one of the seconds counted from the first request's start; spread evenly
    over chunks.
    """
    if not done:
        return None
    origin = min(sample.sent_s for sample in done)
    seconds: Counter[int] = Counter()
    for sample in done:
        each = sample.output_tokens / len(sample.arrivals_s)
        tokens = sample.chunk_tokens or (each,) * len(sample.arrivals_s)
        for at, count in zip(sample.arrivals_s, tokens, strict=True):
            seconds[math.floor(at - origin)] += count  # type: ignore[assignment]  # floats add up too
    return float(max(seconds.values()))


def _peak_requests(samples: Sequence[Sample]) -> int:
    """Most requests on the wire at one moment; an end and a start at one time do not overlap."""
    moves = sorted(
        [(sample.sent_s, 1) for sample in samples] + [(sample.end_s, -1) for sample in samples]
    )
    now = peak = 0
    for _, move in moves:
        now += move
        peak = max(peak, now)
    return peak


def details(run: Run) -> dict[str, Any]:
    """One list entry per request that ended, in request order, under vLLM's names; seconds."""
    samples = run.samples
    return {
        "input_lens": [sample.input_tokens for sample in samples],
        "output_lens": [sample.output_tokens if sample.ok else 0 for sample in samples],
        "ttfts": [sample.ttft_s for sample in samples],
        "itls": [list(sample.itls_s) for sample in samples],
        "latencies": [sample.e2el_s for sample in samples],
        "start_times": [sample.sent_s - run.started_s for sample in samples],
        "queue_times": [sample.queue_s for sample in samples],
        "generated_texts": [sample.text for sample in samples],
        "errors": [sample.error or "" for sample in samples],
    }


def request_line(sample: Sample, started_s: float, slo: Slo | None) -> dict[str, Any]:
    """One request as a line of the per-request file; times in seconds from the start of the run."""
    return {
        "index": sample.index,
        "request_id": sample.request_id,
        "ok": sample.ok,
        "error": sample.error,
        "due_s": sample.due_s - started_s,
        "sent_s": sample.sent_s - started_s,
        "end_s": sample.end_s - started_s,
        "lag_s": sample.lag_s,
        "queue_s": sample.queue_s,
        "ttft_s": sample.ttft_s,
        "tpot_s": sample.tpot_s,
        "e2el_s": sample.e2el_s,
        "itls_s": list(sample.itls_s),
        "chunk_tokens": list(sample.chunk_tokens),
        "input_tokens": sample.input_tokens,
        "output_tokens": sample.output_tokens,
        "wanted_tokens": sample.wanted_tokens,
        "finish_reason": sample.finish_reason,
        "server_timing": sample.server_timing,
        "slo_missed": None if slo is None else slo.misses(sample),
        "text": sample.text,
    }
