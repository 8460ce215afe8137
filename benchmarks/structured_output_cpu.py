"""What structured output costs the engine's thread: CPU time of its steps, with a schema and
without, in turns in one process. CPU time, unlike ITL, can be told on a machine that is not quiet.

    taskset -c 0 python -m benchmarks.structured_output_cpu --model models/xpyd-demo

Random prompts: an untaught model seldom begins the wanted structure by itself, so most choices are
refused and need a mask. A model that was asked for JSON in words needs fewer.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from benchmarks.percentiles import mean, median
from benchmarks.structured_output import SCHEMA
from common.config import ServeConfig
from common.engine.engine import Engine
from common.instance.parts import build_engine, pin_to_cores
from common.request import Constraint, EngineRequest, SamplingParams

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_p 0.9": {"temperature": 1.0, "top_p": 0.9},
}
WAIT_S = 0.005  # for the schema to be compiled


def step_ms(engine: Engine, streams: int, tokens: int, sampling: dict[str, Any]) -> float:
    """Mean CPU time of the steps in which all streams are decoded."""
    for number in range(streams):
        prompt = tuple((number * 31 + i) % 1000 + 10 for i in range(32))
        is_free = "constraint" not in sampling  # the schema asks for more than `tokens` can hold
        params = SamplingParams(tokens, seed=number, ignore_eos=is_free, **sampling)
        engine.add(EngineRequest(f"r{number}", prompt, params))
    found = []
    while engine.has_work():
        began = time.thread_time()
        result = engine.step()
        took = time.thread_time() - began
        if result.num_tokens == streams:
            found.append(took * 1000)
        elif not result.num_tokens:
            time.sleep(WAIT_S)
    return mean(found)


def compare(engine: Engine, options: argparse.Namespace, sampling: dict[str, Any]) -> str:
    schema = Constraint("json_schema", json.dumps(SCHEMA))
    asks = [sampling, {**sampling, "constraint": schema}]
    for ask in asks:
        step_ms(engine, options.streams, 8, ask)  # warm, and compiled
    rounds = []
    for number in range(options.rounds):
        took = [0.0, 0.0]
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            took[i] = step_ms(engine, options.streams, options.tokens, asks[i])
        rounds.append(took)
    ratios = [constrained / free for free, constrained in rounds]
    free, constrained = (median([each[i] for each in rounds]) for i in (0, 1))
    return (
        f"free {free:6.2f} ms  schema {constrained:6.2f} ms  "
        f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of engine steps with a JSON schema.")
    parser.add_argument("--model", default="models/xpyd-demo")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="per stream")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", default="0", help="a single one: threads' time is not counted")
    options = parser.parse_args()
    config = ServeConfig(options.model, kv_cache_memory=64 << 20, cpu_cores=options.core)
    pin_to_cores(config)
    engine = build_engine(config).engine
    try:
        for name, sampling in KINDS.items():
            print(f"{name:26} {compare(engine, options, sampling)}", flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    main()
