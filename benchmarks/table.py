"""A summary for people: the table and what to be wary of. Pure text; knows only the summary's
names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TITLES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL (per chunk)",
    "e2el": "E2E latency",
    "client_queue_time": "client queue",
}
_MAX_LOOP_LAG_MS = 2.0  # uvloop's timers alone make up to one
_MAX_LAG_SHARE = 0.1


def render(summary: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> str:
    """The counts, then one row of milliseconds per metric."""
    lines = [f"{name:<30}{value}" for name, value in _counts(summary)]
    heads = ["mean", *(f"p{q:g}" for q in percentiles)]
    lines += ["", f"{'milliseconds':<18}" + "".join(f"{head:>12}" for head in heads)]
    for metric in metrics:
        cells = "".join(f"{_number(summary[f'{head}_{metric}_ms']):>12}" for head in heads)
        lines.append(f"{_TITLES[metric]:<18}{cells}")
    return "\n".join(lines)


def _counts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("completed / failed", f"{summary['completed']} / {summary['failed']}"),
        ("duration", f"{_number(summary['duration'])} s"),
        (
            "tokens in / out",
            f"{summary['total_input_tokens']} / {summary['total_output_tokens']}",
        ),
        ("request throughput", f"{_number(summary['request_throughput'])} req/s"),
        ("output throughput", f"{_number(summary['output_throughput'])} tok/s"),
        ("total throughput", f"{_number(summary['total_token_throughput'])} tok/s"),
        ("most requests at once", str(summary["max_concurrent_requests"])),
    ]
    if summary["request_goodput"] is not None:
        share = summary["slo_attainment"] or 0.0
        rows.append(
            ("goodput", f"{_number(summary['request_goodput'])} req/s ({share:.1%} met the SLO)")
        )
        rows += [(f"  missed {name}", str(n)) for name, n in summary["slo_misses"].items()]
    rows += [(f"  failed x {n}", reason) for reason, n in summary["error_counts"].items()]
    return rows


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """Reasons not to take the numbers at face value."""
    found = []
    if summary["interrupted"]:
        found.append(
            f"interrupted: partial results, {summary['cancelled']} requests were in flight"
        )
    lag = summary["client_loop_lag_p99_ms"]
    if lag > max(_MAX_LOOP_LAG_MS, _MAX_LAG_SHARE * _shortest_wait(summary)):
        found.append(
            f"this client was slow: its event loop lagged {lag:.1f} ms at p99, "
            "which is in every latency above"
        )
    if summary["client_cpu_fraction"] > 0.9:
        found.append("this client used a whole core: the server may be faster than it looks")
    schedule_lag, ttft = summary["p99_schedule_lag_ms"], summary.get("median_ttft_ms")
    if schedule_lag and ttft and schedule_lag > max(_MAX_LOOP_LAG_MS, _MAX_LAG_SHARE * ttft):
        found.append(
            f"requests went out late: {schedule_lag:.1f} ms at p99 (counted as TTFT, but our fault)"
        )
    if summary["uncounted"]:
        found.append(
            f"{summary['uncounted']} answers without usage: their tokens are counted as chunks"
        )
    elif (per_chunk := summary["tokens_per_chunk"]) and per_chunk > 1.05:
        found.append(
            f"chunks carry {per_chunk:.2f} tokens on average: ITL is per chunk, TPOT per token"
        )
    if summary["short_answers"]:
        found.append(
            f"{summary['short_answers']} answers were shorter than asked (see --ignore-eos)"
        )
    return found


def _shortest_wait(summary: Mapping[str, Any]) -> float:
    """The typical latency that the client's lag distorts most, in ms."""
    waits = [summary.get(f"median_{name}_ms") for name in ("ttft", "itl")]
    return min((wait for wait in waits if wait), default=0.0)
