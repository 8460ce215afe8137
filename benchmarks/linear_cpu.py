"""Our products with weights beside oneDNN's, from one row to a long prompt, and the floors.

    python -m benchmarks.linear_cpu [--threads 2 1] [--rows 1 8 512]

A step is the projections of some layers of the 0.4B shape; together the weights are too big for any
cache, as in a real step. Sides take turns within each round; floors are measured in every round.
`onednn` is what stock torch offers prepacked, `F.linear` what it does by itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.floors_cpu import Floors
from benchmarks.made_model import MEDIUM
from benchmarks.percentiles import median
from kernels import native_library
from kernels.linear import linear, pack

Step = Callable[[dict[int, Tensor]], None]  # inputs by width

_LAYERS = 6
_TARGET_S = 0.2  # of steps per side and round
SIDES = ("ours", "int8", "onednn", "F.linear")


def sides(names: list[str]) -> dict[str, Step]:
    """Each side with weights of its own, laid out as it wants them."""
    generator = torch.Generator().manual_seed(0)
    shapes = list(MEDIUM.matrices) * _LAYERS
    weights = [
        (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16) for shape in shapes
    ]
    makers = {"ours": _ours, "int8": _int8, "onednn": _onednn, "F.linear": _plain}
    return {name: makers[name](weights) for name in names}


def _ours(weights: list[Tensor]) -> Step:
    return _packed([pack(weight) for weight in weights])


def _int8(weights: list[Tensor]) -> Step:
    return _packed([pack(weight, None, "int8") for weight in weights])


def _packed(packed: list[Any]) -> Step:
    def step(inputs: dict[int, Tensor]) -> None:
        for weight in packed:
            linear(inputs[weight.in_features], weight)

    return step


def _onednn(weights: list[Tensor]) -> Step:
    """Reordered for each number of rows anew, which is not timed: its layout depends on it."""
    packed: dict[int, list[tuple[int, Tensor]]] = {}

    def step(inputs: dict[int, Tensor]) -> None:
        rows = next(iter(inputs.values())).shape[0]
        if rows not in packed:
            packed.clear()
            reorder = torch.ops.mkldnn._reorder_linear_weight
            packed[rows] = [(w.shape[1], reorder(w, rows)) for w in weights]
        for width, weight in packed[rows]:
            torch.ops.mkldnn._linear_pointwise(inputs[width], weight, None, "none", [], "")

    return step


def _plain(weights: list[Tensor]) -> Step:
    def step(inputs: dict[int, Tensor]) -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    return step


def measure(
    steps: dict[str, Step], rows: int, threads: int, floors: Floors, rounds: int
) -> dict[str, Any]:
    """Seconds per step and side, round by round, and the floor of each round."""
    values = sum(out * into for out, into in MEDIUM.matrices) * _LAYERS
    inputs = {
        into: torch.randn(rows, into, generator=torch.Generator().manual_seed(into)).bfloat16()
        for _, into in MEDIUM.matrices
    }
    torch.set_num_threads(threads)
    native_library.set_num_threads(threads)
    for step in steps.values():
        step(inputs)
    times: dict[str, list[float]] = {name: [] for name in steps}
    limits: list[dict[str, float]] = []
    for i in range(rounds):
        read, multiply = floors.read(), floors.multiply()
        limits.append({"read": values * 2 / read, "multiply": 2 * rows * values / multiply})
        for name in list(steps)[:: 1 - 2 * (i % 2)]:
            times[name].append(_time(steps[name], inputs))
    return {"rows": rows, "threads": threads, "seconds": times, "floors": limits}


def _time(step: Step, inputs: dict[int, Tensor]) -> float:
    """Median of steps for a while."""
    found: list[float] = []
    while sum(found) < _TARGET_S:
        began = time.perf_counter()
        step(inputs)
        found.append(time.perf_counter() - began)
    return median(sorted(found))


def _line(found: dict[str, Any]) -> str:
    times = found["seconds"]
    floor = [max(limit.values()) for limit in found["floors"]]
    cells = [str(found["rows"]), str(found["threads"])]
    cells += [f"{median(sorted(values)) * 1e3:.2f}" for values in times.values()]
    cells.append(f"{median(sorted(floor)) * 1e3:.2f}")
    for other in ("onednn", "floor"):
        against = floor if other == "floor" else times.get(other)
        if "ours" in times and against:
            ratios = sorted(a / b for a, b in zip(times["ours"], against, strict=True))
            cells.append(f"{median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Products with weights beside oneDNN's.")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 32, 64, 256, 512, 2048])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="file for the times as JSON")
    options = parser.parse_args()
    steps = sides(options.sides)
    heads = ["rows", "threads", *(f"{name}, ms" for name in steps), "floor, ms"]
    heads += ["ours / onednn"] * ("onednn" in steps) + ["ours / floor"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    found = []
    for threads in options.threads:
        floors = Floors(threads)
        for rows in options.rows:
            found.append(measure(steps, rows, threads, floors, options.rounds))
            print(_line(found[-1]), flush=True)
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
