"""What the rounds showed: rows, one table, one JSON object, one word. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Row:
    """One round: one fault under some streams."""

    fault: str
    victim: str
    gap_limit_s: float
    streams: int = 0
    failed: int = 0  # accepted, and then no proper end
    refused: int = 0  # turned away while somebody could have served
    altered: int = 0  # other bytes than on a quiet day
    gap_s: float = 0.0  # longest pause: between two pieces, or before the first
    migrations: int = 0
    whole_after_s: float | None = None  # until all instances were ready again; None: not in time
    complaints: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        counted = (("failed", self.failed), ("refused", self.refused), ("altered", self.altered))
        found = [f"{count} {name}" for name, count in counted if count]
        if self.gap_s > self.gap_limit_s:
            found.append(f"a gap of {self.gap_s:.1f} s, limit {self.gap_limit_s:.1f} s")
        return found + self.complaints


def report(rows: Sequence[Row], seed: int, seconds: float) -> dict[str, Any]:
    """The JSON object."""
    return {
        "verdict": verdict(rows),
        "seed": seed,
        "seconds": round(seconds, 1),
        "streams": sum(row.streams for row in rows),
        "failed": sum(row.failed for row in rows),
        "refused": sum(row.refused for row in rows),
        "altered": sum(row.altered for row in rows),
        "longest_gap_s": round(max((row.gap_s for row in rows), default=0.0), 3),
        "rounds": [asdict(row) | {"problems": row.problems()} for row in rows],
    }


def verdict(rows: Sequence[Row]) -> str:
    """Nothing shown is not a pass."""
    if not rows:
        return "nothing was tried"
    return "fail" if any(row.problems() for row in rows) else "pass"


def line(row: Row) -> str:
    whole = "-" if row.whole_after_s is None else f"{row.whole_after_s:.1f}"
    words = "; ".join(row.problems()) or "ok"
    return (
        f"{row.fault:<10} {row.victim or '-':<11} {row.streams:>7} {row.failed:>6} "
        f"{row.altered:>7} {row.gap_s:>6.2f} {row.migrations:>6} {whole:>7}  {words}"
    )


HEAD = (
    f"{'fault':<10} {'instance':<11} {'streams':>7} {'failed':>6} {'altered':>7} {'gap s':>6} "
    f"{'moved':>6} {'whole s':>7}"
)
