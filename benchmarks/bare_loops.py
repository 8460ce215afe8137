"""What the machine allows, without any server: bare loops, each in a process pinned to its cores.

    gemm    the matrix products of a prompt, in chunks, through torch's own bfloat16 kernels
    sweep   one read of as many bytes as a decode step reads, again and again
    limits  on all cores given: the fastest product of large matrices, the fastest read

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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.made_model import MEDIUM, Shape
from benchmarks.percentiles import median, percentile

CHUNK = 512
LIMIT_S = 3.0  # for each limit
LARGE_PRODUCTS = ((2048, 4096, 4096), (512, 9728, 896), (2048, 9728, 896))
WARM_UP_S = 1.0


def gemm_floor(core: int) -> float:
    """Seconds per token for a prompt's matrix products on one core; the best of three chunks."""
    seconds: float = _child("gemm", [core])["seconds"]
    return seconds / CHUNK


def sweeps(core: int, busy_core: int | None, seconds: float) -> list[float]:
    """Times of single sweeps, with a GEMM loop on `busy_core` meanwhile."""
    neighbour = _start("gemm-loop", [busy_core]) if busy_core is not None else None
    try:
        times: list[float] = _child("sweep", [core], "--seconds", str(seconds))["times"]
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


def limits(cores: Sequence[int]) -> dict[str, float]:
    """`bytes_per_s` read from memory and bfloat16 `flops`, by all of these cores together."""
    found: dict[str, float] = _child("limits", cores)
    return found


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


def _limits_loop(num_threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(num_threads)

    def fastest(work: Callable[[], object], seconds: float) -> float:
        best, end = float("inf"), time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            work()
            best = min(best, time.perf_counter() - began)
        return best

    buffer = torch.ones(MEDIUM.num_weights * 2 // 4, dtype=torch.float32)
    read_s = min(fastest(work, LIMIT_S / 2) for work in (buffer.sum, buffer.max))
    product_s = float("inf")
    for rows, out, into in LARGE_PRODUCTS:
        x = torch.randn(rows, into, dtype=torch.bfloat16)
        matrix = torch.randn(out, into, dtype=torch.bfloat16)
        multiply = partial(torch.nn.functional.linear, x, matrix)
        product_s = min(product_s, fastest(multiply, LIMIT_S / 2) / (2 * rows * out * into))
    return {"bytes_per_s": buffer.nbytes / read_s, "flops": 1 / product_s}


def _start(what: str, cores: Sequence[int], *arguments: str) -> subprocess.Popen[str]:
    at = ",".join(map(str, cores))
    command = [sys.executable, "-m", "benchmarks.bare_loops", what, "--cores", at, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _child(what: str, cores: Sequence[int], *arguments: str) -> dict[str, Any]:
    process = _start(what, cores, *arguments)
    output, _ = process.communicate(timeout=300)
    found: dict[str, Any] = json.loads(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A bare loop; prints JSON.")
    parser.add_argument("what", choices=["gemm", "gemm-loop", "sweep", "limits"])
    parser.add_argument("--cores", required=True, metavar="N,…")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    cores = [int(core) for core in options.cores.split(",")]
    os.sched_setaffinity(0, cores)
    if options.what == "limits":
        print(json.dumps(_limits_loop(len(cores))))
    elif options.what == "sweep":
        print(json.dumps({"times": _sweep_loop(MEDIUM.num_weights * 2, options.seconds)}))
    else:
        is_endless = options.what == "gemm-loop"
        print(json.dumps({"seconds": _gemm_loop(MEDIUM, is_endless=is_endless)}))


if __name__ == "__main__":
    main()
