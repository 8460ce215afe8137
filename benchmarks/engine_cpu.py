"""The engine on a CPU beside a peer's and beside transformers' generate, in one run.

    python -m benchmarks.engine_cpu --output engine.json --peer-name vllm \\
      --peer "/path/to/start-vllm {model} {port}"                         # all, about 20 minutes
    python -m benchmarks.engine_cpu --only one-stream --output engine.json   # one part, kept beside
    python -m benchmarks.engine_cpu --output engine.json --table             # what is there already

Sides take turns, round by round, with the same prompts from the same client over HTTP; whoever is
not asked is stopped. The floors are the machine's: bandwidth and GEMM peak are measured before and
after the rounds, and the better counts. `engine_workloads.py` has the parts, `engine_table.py` the
targets. Weights are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import bare_loops
from benchmarks.client import Client, Target, list_models, open_session
from benchmarks.engine_sides import Side, Sides
from benchmarks.engine_table import render
from benchmarks.engine_workloads import WORKLOADS, Workload, floors, summarize
from benchmarks.made_model import write_model, write_weights
from benchmarks.runner import RunLog, run_fixed_concurrency

IDLE_S = 3.0
START_ROUNDS = 5
PARTS = (*WORKLOADS, "start")
CORES = sorted(os.sched_getaffinity(0))


async def ask(side: Side, workload: Workload, number: int, count: int | None) -> dict[str, float]:
    """One round of one side."""
    side.go_on()
    body = {"temperature": 0, "ignore_eos": True, "skip_special_tokens": False}
    target = Target(side.url, "/v1/completions", "", body=body)
    async with open_session(target) as session:
        [model, *_] = await list_models(session, target)
        target = Target(side.url, "/v1/completions", model, body=body)
        client = Client(session, target, run_id=f"{workload.what} {number}")
        log, cpu_s = RunLog(), side.cpu_s()
        prompts = workload.prompts(number, count)
        await run_fixed_concurrency(prompts, workload.streams, client.send, log)
        cpu_s = side.cpu_s() - cpu_s
    side.peak_bytes()
    side.stop()
    return summarize(log.samples, log.ended_s - log.started_s, cpu_s)


def compare(workload: Workload, sides: list[Side], rounds: int) -> dict[str, Any]:
    limits = [bare_loops.limits(CORES)]
    found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for side in sides:
        _say(f"{side.name}: warming up")
        asyncio.run(ask(side, workload, -1, max(2, workload.streams)))
    for number in range(rounds):
        for side in sides:
            found[side.name].append(asyncio.run(ask(side, workload, number, None)))
            shown = {name: round(value, 2) for name, value in found[side.name][-1].items()}
            _say(f"{side.name} round {number}: {shown}")
    idle = {}
    for side in sides:
        side.go_on()
        time.sleep(1.0)
        idle[side.name] = side.idle_share(IDLE_S)
        side.stop()
    limits.append(bare_loops.limits(CORES))
    best = {name: max(each[name] for each in limits) for name in limits[0]}
    return {
        "limits": best,
        "floors": floors(workload, best["bytes_per_s"], best["flops"]),
        "rounds": found,
        "start_s": {side.name: side.start_s for side in sides},
        "peak_bytes": {side.name: side.peak_bytes() for side in sides},
        "idle_share": idle,
    }


def measure(part: str, options: argparse.Namespace, model: Path, sides: Sides) -> dict[str, Any]:
    if part == "start":
        return _starts(model, sides)
    workload = WORKLOADS[part]
    running = [sides.ours(model, "xpyd", *options.ours)]
    if part == "int8":
        running.append(sides.ours(model, "xpyd int8", "--quantization", "int8", *options.ours))
    elif options.peer:
        running.append(sides.peer(model, options.peer_name, options.peer))
    if part != "int8" and not options.no_transformers:
        running.append(sides.transformers(model))
    return compare(workload, running, options.rounds or workload.rounds)


def _starts(model: Path, sides: Sides) -> dict[str, Any]:
    """Again and again, one at a time: files in the page cache, the native library compiled."""
    times = []
    for _ in range(START_ROUNDS):
        side = sides.ours(model)
        times.append({"start_s": side.start_s})
        side.end()
        sides.started.remove(side)
    return {"rounds": {"xpyd": times}}


def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    if options.output and options.output.exists():
        results = json.loads(options.output.read_text())
    with tempfile.TemporaryDirectory(prefix="xpyd-engine-") as scratch:
        models = options.models or Path(scratch) / "models"
        for part in options.only:
            workload = WORKLOADS[part if part in WORKLOADS else "one-stream"]
            model = models / workload.model
            if not model.exists():
                _say(f"writing {model}")
                write_weights(write_model(model, workload.shape), workload.shape)
            load = os.getloadavg()[0]
            sides = Sides(Path(tempfile.mkdtemp(prefix="xpyd-engine-logs-")))
            try:
                found = measure(part, options, model, sides)
            finally:
                sides.end()
            results[part] = {**found, "peer": options.peer_name, "load_before": load, **_machine()}
            if options.output:
                options.output.write_text(json.dumps(results, indent=1))
    return results


def _machine() -> dict[str, Any]:
    import torch

    return {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "cores": len(CORES),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="instead of each part's own number")
    parser.add_argument("--peer", default="", help="how to start it, with {model} and {port}")
    parser.add_argument("--peer-name", default="peer")
    parser.add_argument("--no-transformers", action="store_true", help="leave its side out")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="more of our flags")
    parser.add_argument("--models", type=Path, help="where made models are kept between runs")
    parser.add_argument("--output", type=Path, help="file for the numbers; parts in it are kept")
    parser.add_argument("--table", action="store_true", help="only print what --output holds")
    options = parser.parse_args()
    if options.table:
        options.only = []
    print(render(run(options)))


if __name__ == "__main__":
    main()
