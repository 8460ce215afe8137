"""What the machine allows, without any server: bare loops, each in a process pinned to one core.

    gemm    the matrix products of a prompt, in chunks, through torch's own bfloat16 kernels
    sweep   one read of as many bytes as a decode step reads, again and again

`beside` runs the second while the first keeps the other core busy: two cores share one memory bus,
so what the sweep loses there no server can avoid.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.made_model import MEDIUM, Shape
from benchmarks.percentiles import median, percentile

CHUNK = 512
WARM_UP_S = 1.0


def gemm_floor(core: int) -> float:
    """Seconds per token for a prompt's matrix products on one core; the best of three chunks."""
    seconds: float = _child("gemm", core)["seconds"]
    return seconds / CHUNK


def sweeps(core: int, busy_core: int | None, seconds: float) -> list[float]:
    """Times of single sweeps, with a GEMM loop on `busy_core` meanwhile."""
    neighbour = _start("gemm-loop", busy_core) if busy_core is not None else None
    try:
        times: list[float] = _child("sweep", core, "--seconds", str(seconds))["times"]
        return times
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()


def beside(cores: Sequence[int], seconds: float) -> dict[str, float]:
    """How much slower sweeps are beside a GEMM: ratios of medians and of 99th percentiles."""
    alone = sorted(sweeps(cores[1], None, seconds))
    busy = sorted(sweeps(cores[1], cores[0], seconds))
    return {
        "sweep_ms": median(alone) * 1e3,
        "sweep_beside_gemm_ms": median(busy) * 1e3,
        "ratio_p50": median(busy) / median(alone),
        "ratio_p99": percentile(busy, 99) / percentile(alone, 99),
    }


# --- in the child ---------------------------------------------------------------------------------


def _gemm_loop(shape: Shape, *, is_endless: bool) -> float:
    """Seconds for one chunk, the best."""
    import torch

    torch.set_num_threads(1)
    layers = [
        [torch.randn(out, into, dtype=torch.bfloat16) for out, into in shape.matrices]
        for _ in range(shape.layers)
    ]
    rows = {into: torch.randn(CHUNK, into, dtype=torch.bfloat16) for _, into in shape.matrices}
    best = float("inf")
    number = 0
    while is_endless or number < 3:
        began = time.perf_counter()
        for matrices in layers:
            for matrix in matrices:
                torch.nn.functional.linear(rows[matrix.shape[1]], matrix)
        best = min(best, time.perf_counter() - began)
        number += 1
    return best


def _sweep_loop(num_bytes: int, seconds: float) -> list[float]:
    import torch

    torch.set_num_threads(1)
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32)
    times: list[float] = []
    end = time.perf_counter() + WARM_UP_S + seconds
    while (began := time.perf_counter()) < end:
        buffer.sum()
        if began > end - seconds:
            times.append(time.perf_counter() - began)
    return times


def _start(what: str, core: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.bare_loops", what, "--core", str(core), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _child(what: str, core: int, *arguments: str) -> dict[str, Any]:
    process = _start(what, core, *arguments)
    output, _ = process.communicate(timeout=300)
    found: dict[str, Any] = json.loads(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A bare loop on one core; prints JSON.")
    parser.add_argument("what", choices=["gemm", "gemm-loop", "sweep"])
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, [options.core])
    if options.what == "sweep":
        print(json.dumps({"times": _sweep_loop(MEDIUM.num_weights * 2, options.seconds)}))
    else:
        is_endless = options.what == "gemm-loop"
        print(json.dumps({"seconds": _gemm_loop(MEDIUM, is_endless=is_endless)}))


if __name__ == "__main__":
    main()
