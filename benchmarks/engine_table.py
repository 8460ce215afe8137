"""What `engine_cpu.py` found beside the targets, as tables: pure. Knows no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.engine_workloads import WORKLOADS
from benchmarks.percentiles import median

OURS = "xpyd"
INT8 = "xpyd int8"
KV_BYTES = 2 << 30  # as engine_sides.KV_MEMORY
_UNITS = {
    "ttft_ms": "TTFT, ms",
    "itl_p50_ms": "ITL p50, ms",
    "itl_p99_ms": "ITL p99, ms",
    "e2e_ms": "end to end, ms",
    "wall_s": "wall, s",
    "requests_per_s": "requests/s",
    "tokens_per_s": "output tokens/s",
    "cpu_ms_per_token": "server CPU per token, ms",
}


@dataclass(frozen=True, slots=True)
class TargetRow:
    part: str
    metric: str
    against: str  # "peer", "floor", "itl_p50_ms" (of ourselves), INT8's rival OURS, "" (absolute)
    bound: float
    is_least: bool = False  # more is better


TARGETS = (
    TargetRow("one-stream", "ttft_ms", "floor", 1.2),
    TargetRow("one-stream", "ttft_ms", "peer", 0.9),
    TargetRow("one-stream", "itl_p50_ms", "floor", 1.15),
    TargetRow("one-stream", "itl_p50_ms", "peer", 0.85),
    TargetRow("one-stream", "itl_p99_ms", "itl_p50_ms", 1.5),
    TargetRow("eight-streams", "tokens_per_s", "peer", 1.25, is_least=True),
    TargetRow("long-prompts", "wall_s", "peer", 0.8),
    TargetRow("many-small", "requests_per_s", "peer", 2.2, is_least=True),
    TargetRow("many-small", "cpu_ms_per_token", "", 0.25),
    TargetRow("one-small", "e2e_ms", "peer", 0.4),
    TargetRow("int8", "itl_p50_ms", OURS, 0.65),
)


def render(results: Mapping[str, Any]) -> str:
    parts = [_part(name, results[name]) for name in WORKLOADS if name in results]
    return "\n\n".join([*parts, _targets(results)])


def _part(name: str, found: Mapping[str, Any]) -> str:
    """Medians over rounds and, in brackets, lowest and highest."""
    sides = list(found["rounds"])
    rows = [[WORKLOADS[name].what, *sides, "floor"]]
    for metric, title in _UNITS.items():
        cells = [_spread([each[metric] for each in found["rounds"][side]]) for side in sides]
        floor = found["floors"].get(metric)
        rows.append([title, *cells, _number(floor) if floor is not None else ""])
    rows.append(["start to /health, s", *(_number(found["start_s"][s]) for s in sides), ""])
    peaks = (found["peak_bytes"][side] / 2**20 for side in sides)
    rows.append(["peak resident, MiB", *(f"{peak:.0f}" for peak in peaks), ""])
    rows.append(["idle, share of a core", *(f"{found['idle_share'][s]:.3f}" for s in sides), ""])
    limits = found["limits"]
    machine = f"{limits['bytes_per_s'] / 1e9:.1f} GB/s, {limits['flops'] / 1e9:.0f} GFLOP/s"
    return _table(rows) + f"\n\n{found['time']}, {found['cores']} cores, {machine}"


def _targets(results: Mapping[str, Any]) -> str:
    rows = [["target", "measured", "ratio (lowest - highest)", "wanted", ""]]
    for target in TARGETS:
        if target.part in results and (row := _judge(target, results[target.part])):
            rows.append(row)
    rows += _start_and_memory(results)
    return _table(rows)


def _judge(target: TargetRow, found: Mapping[str, Any]) -> list[str] | None:
    """None where the other side was not there."""
    mine = found["rounds"][INT8 if target.part == "int8" else OURS]
    values = [each[target.metric] for each in mine]
    if target.against == "floor":
        others = [found["floors"][target.metric]] * len(values)
    elif target.against in _UNITS:
        others = [each[target.against] for each in mine]
    elif target.against:
        name = found["peer"] if target.against == "peer" else target.against
        if name not in found["rounds"]:
            return None
        others = [each[target.metric] for each in found["rounds"][name]]
    else:
        others = [1.0] * len(values)
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    middle = median(ratios)
    is_met = middle >= target.bound if target.is_least else middle <= target.bound
    of = {"peer": found["peer"], "": "", OURS: "bfloat16"}.get(target.against, target.against)
    what = f"{target.part}: {_UNITS[target.metric]}" + (f" over {_UNITS.get(of, of)}" if of else "")
    shown = f"{_number(median(values))} / {_number(median(others))}" if of else ""
    spread = f"{middle:.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    bound = f"{'at least' if target.is_least else 'at most'} {target.bound}"
    return [what, shown, spread, bound, "met" if is_met else "missed"]


def _start_and_memory(results: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    if "start" in results:
        times = [each["start_s"] for each in results["start"]["rounds"][OURS]]
        is_met = median(times) <= 6.0
        rows.append(
            ["start to /health, s", "", _spread(times), "at most 6", "met" if is_met else "missed"]
        )
    for part in (name for name in WORKLOADS if name in results):
        weights = WORKLOADS[part].shape.num_weights * 2
        more = (results[part]["peak_bytes"][OURS] - weights - KV_BYTES) / 2**20
        verdict = "met" if more <= 400 else "missed"
        what = f"{part}: peak resident less weights and KV, MiB"
        rows.append([what, "", f"{more:.0f}", "at most 400", verdict])
    return rows


def _spread(values: Sequence[float]) -> str:
    return f"{_number(median(values))} ({_number(min(values))} - {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
