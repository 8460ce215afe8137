"""Two servers' summaries, round by round, as medians and ratios: pure. Knows no server and no run.

The ratio is taken within each round, where both sides met the same minute of the machine, and then
the median over rounds; its lowest and highest value say how far to trust it. Absolute times move
from machine to machine, ratios less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.percentiles import median

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    a: float  # median over rounds
    b: float
    ratio: float | None  # b / a, median over rounds; None where an `a` is 0
    lowest: float | None
    highest: float | None


def compare(rounds: Sequence[tuple[Summary, Summary]], names: Sequence[str]) -> list[Row]:
    """One row per name that every summary of every round has a value for."""
    rows = []
    for name in names:
        pairs = [(a.get(name), b.get(name)) for a, b in rounds]
        known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
        if not known or len(known) < len(pairs):
            continue
        ratios = [b / a for a, b in known] if all(a for a, _ in known) else []
        rows.append(
            Row(
                name,
                median([a for a, _ in known]),
                median([b for _, b in known]),
                median(ratios) if ratios else None,
                min(ratios, default=None),
                max(ratios, default=None),
            )
        )
    return rows


def names_of(metrics: Sequence[str], percentiles: Sequence[float], *, has_slo: bool) -> list[str]:
    """The fields worth a row."""
    names = ["request_throughput", "output_throughput", *(["request_goodput"] if has_slo else [])]
    for metric in metrics:
        names += [f"mean_{metric}_ms", *(f"p{q:g}_{metric}_ms" for q in percentiles)]
    return names


def render(rows: Sequence[Row], label_a: str, label_b: str, num_rounds: int) -> str:
    over = f"of {num_rounds} round" + ("s" if num_rounds > 1 else "")
    lines = [
        f"A: {label_a}\nB: {label_b}\n",
        f"{'median over rounds':<24}{'A':>12}{'B':>12}{'B/A':>9}   lowest - highest {over}",
    ]
    for row in rows:
        line = f"{row.name:<24}{row.a:>12.3f}{row.b:>12.3f}"
        if row.ratio is not None:
            line += f"{row.ratio:>9.3f}   {row.lowest:.3f} - {row.highest:.3f}"
        lines.append(line)
    return "\n".join(lines)
