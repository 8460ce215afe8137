"""Paged attention alone, one layer's call at a time: ours beside vLLM's CPU kernel and the floors.

    python -m benchmarks.attention_cpu --peer-python /path/to/vllm-env/bin/python

Each side is a process of its own (`attention_sides.py`), on the same cores and in turns; without
--peer-python ours runs beside the floors only. Floors are measured in between, in the same rounds:
reading for decode, oneDNN's GEMM for prefill. It also compares what the two sides computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention_sides import CASES
from benchmarks.floors_cpu import Floors
from benchmarks.percentiles import median

_ANSWER_S = 120.0
_TARGET_S = 0.15  # of calls per round


class Side:
    """A process that times cases when told to."""

    def __init__(self, name: str, python: str, threads: int, env: dict[str, str]) -> None:
        self.name = name
        command = [python, "-m", "benchmarks.attention_sides", name, "--threads", str(threads)]
        root = str(Path(__file__).parent.parent)
        environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": str(threads)} | env
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def time(self, case: str, calls: int, output: str | None = None) -> float:
        """Seconds per call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"case": case, "calls": calls, "output": output}),
            file=self._process.stdin,
            flush=True,
        )
        for line in self._process.stdout:  # a library may print as well
            if line.startswith("{"):
                return float(json.loads(line)["seconds"])
        raise SystemExit(f"{self.name} ended with {self._process.wait(_ANSWER_S)}")

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure(options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """One row per case, with the times of every round."""
    peer_env = dict(entry.split("=", 1) for entry in options.peer_env)
    sides = [Side("ours", sys.executable, threads, {})]
    if options.peer_python:
        sides.append(Side("vllm", options.peer_python, threads, peer_env))
    floors = Floors(threads)
    rows = []
    try:
        for name in options.cases:
            calls = {side.name: 1 for side in sides}
            for side in sides:
                once = min(side.time(name, 1) for _ in range(3))
                calls[side.name] = max(2, round(_TARGET_S / once))
            times: dict[str, list[float]] = {side.name: [] for side in sides}
            limits: list[float] = []
            for i in range(options.rounds):
                limits.append(floors.read() if CASES[name].new == 1 else floors.multiply())
                for side in sides[:: 1 - 2 * (i % 2)]:  # each goes first every other round
                    times[side.name].append(side.time(name, calls[side.name]))
                    time.sleep(options.pause)  # until its threads sleep
            rows.append(_row(name, threads, times, limits, _difference(sides, name)))
            print(_line(rows[-1]), flush=True)
    finally:
        for side in sides:
            side.stop()
    return rows


def _row(
    name: str,
    threads: int,
    times: dict[str, list[float]],
    limits: list[float],
    difference: float | None,
) -> dict[str, Any]:
    case = CASES[name]
    amount = case.kv_bytes if case.new == 1 else case.flops
    return {
        "case": name,
        "threads": threads,
        "ours_s": times["ours"],
        "vllm_s": times.get("vllm"),
        "floor_s": [amount / limit for limit in limits],
        "limit": median(sorted(limits)),
        "unit": "GB/s" if case.new == 1 else "GFLOP/s",
        "largest_difference": difference,
    }


def _difference(sides: list[Side], name: str) -> float | None:
    if len(sides) < 2:
        return None
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/{side.name}" for side in sides]
        for side, path in zip(sides, paths, strict=True):
            side.time(name, 1, path)
        ours, theirs = (np.fromfile(path, np.float32) for path in paths)
        return float(np.abs(ours - theirs).max())


def _ratios(ours: list[float], others: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(ours, others, strict=True))
    return f"{median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"


def _line(row: dict[str, Any]) -> str:
    ours, floor = row["ours_s"], row["floor_s"]
    cells = [row["case"], str(row["threads"]), f"{median(sorted(ours)) * 1e3:.3f}"]
    if row["vllm_s"]:
        cells += [f"{median(sorted(row['vllm_s'])) * 1e3:.3f}", _ratios(ours, row["vllm_s"])]
    else:
        cells += ["-", "-"]
    cells += [f"{median(sorted(floor)) * 1e3:.3f}", _ratios(ours, floor)]
    cells += [f"{row['limit'] / 1e9:.1f} {row['unit']}"]
    cells += ["-" if row["largest_difference"] is None else f"{row['largest_difference']:.4f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Paged attention beside vLLM's and the floors.")
    parser.add_argument("--peer-python", help="interpreter of an environment with vLLM for CPU")
    parser.add_argument("--peer-env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between sides")
    parser.add_argument("--output", help="file for the times as JSON")
    options = parser.parse_args()
    print(
        "| case | threads | ours, ms | vLLM, ms | ratio | floor, ms | of the floor | limit | diff |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    rows = [row for threads in options.threads for row in measure(options, threads)]
    if options.output:
        Path(options.output).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
