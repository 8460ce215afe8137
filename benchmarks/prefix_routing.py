"""How many prompt tokens a fleet computes when prompts share prefixes, by routing policy.

    python -m benchmarks.prefix_routing --groups 11 --prefix-len 1024 --kv-cache-memory 20MiB

The prefixes fit into the caches of two prefill instances together, not into one. The same real
instances serve all policies of a run, each through a proxy of its own and with prompts of its own.
What was computed is the prompt less what the API reports as cached; times are shown, but on shared
cores they are not the point.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.percentiles import median
from benchmarks.routers import free_port

MODEL = Path(__file__).parents[1] / "models" / "xpyd-demo"
START_S = 180.0


@dataclass(frozen=True, slots=True)
class Answered:
    prompt_tokens: int
    cached_tokens: int
    seconds: float


def workload(options: argparse.Namespace, seed: str) -> list[list[int]]:
    """Prompts of all groups, in random order: a prefix of the group, then tokens of its own."""
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(10, 3000) for _ in range(count)]

    prefixes = [tokens(options.prefix_len) for _ in range(options.groups)]
    prompts = [
        [*prefix, *tokens(options.own_len)] for prefix in prefixes for _ in range(options.each)
    ]
    rng.shuffle(prompts)
    return prompts


async def ask(session: aiohttp.ClientSession, url: str, prompt: list[int]) -> Answered:
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    began = time.monotonic()
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        usage = (await response.json())["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Answered(usage["prompt_tokens"], cached, time.monotonic() - began)


async def run_all(
    session: aiohttp.ClientSession, url: str, prompts: list[list[int]], concurrency: int
) -> list[Answered]:
    waiting = iter(prompts)
    answers: list[Answered] = []

    async def client() -> None:
        for prompt in waiting:
            answers.append(await ask(session, url, prompt))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return answers


async def healthy(session: aiohttp.ClientSession, url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(aiohttp.ClientError):
            async with session.get(f"{url}/health") as response:
                if response.status == 200:
                    return
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} did not become healthy")
        await asyncio.sleep(0.2)


async def followed(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until a proxy that routes by prefix knows all caches."""
    while True:
        async with session.get(f"{url}/status") as response:
            prefixes = (await response.json())["prefixes"]
        if prefixes is None or prefixes["instances_followed"] == 3:
            return
        await asyncio.sleep(0.1)


def start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        command = [sys.executable, "-m", "scripts.cli", *arguments]
        return subprocess.Popen(command, stdout=output, stderr=output)


async def measure(options: argparse.Namespace, processes: list[subprocess.Popen[bytes]]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="xpyd-prefix-routing-"))
    addresses: dict[str, list[str]] = {"prefill": [], "decode": []}
    cores = sorted(os.sched_getaffinity(0))
    for number, role in enumerate(("prefill", "prefill", "decode")):
        port = free_port()
        flags = [
            "--role",
            role,
            "--port",
            str(port),
            "--cpu-cores",
            str(cores[number % len(cores)]),
        ]
        memory = options.kv_cache_memory if role == "prefill" else "256MiB"
        log = directory / f"{role}-{number}.log"
        processes.append(start(log, "serve", options.model, *flags, "--kv-cache-memory", memory))
        addresses[role].append(f"127.0.0.1:{port}")
    results = {}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for role in ("prefill", "decode"):
            for address in addresses[role]:
                await healthy(session, f"http://{address}")
        for number, policy in enumerate(options.policies):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            where = [f"--{role}={address}" for role in addresses for address in addresses[role]]
            flags = ["--port", str(port), "--registry-port", str(free_port())]
            log = directory / f"proxy-{number}.log"
            processes.append(start(log, "proxy", *flags, *where, f"--policy={policy}"))
            await healthy(session, url)
            await followed(session, url)
            prompts = workload(options, f"{options.seed}/{number}")
            results[policy] = summary(
                await run_all(session, url, prompts, options.concurrency), options
            )
            print(json.dumps({"policy": policy, **results[policy]}), flush=True)
    blind, aware = results.get("round_robin"), results.get("prefix_aware")
    if blind and aware:
        ratio = aware["computed_tokens"] / blind["computed_tokens"]
        print(json.dumps({"computed_tokens_ratio": round(ratio, 3)}))


def summary(answers: list[Answered], options: argparse.Namespace) -> dict[str, float]:
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    computed = prompt_tokens - sum(answer.cached_tokens for answer in answers)
    own = options.groups * (options.prefix_len + options.each * options.own_len)
    return {
        "requests": len(answers),
        "prompt_tokens": prompt_tokens,
        "computed_tokens": computed,
        "least_possible": own,
        "seconds_p50": round(median([a.seconds for a in answers]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--groups", type=int, default=11, help="different prefixes")
    parser.add_argument("--each", type=int, default=12, help="requests per prefix")
    parser.add_argument("--prefix-len", type=int, default=1024)
    parser.add_argument("--own-len", type=int, default=32, help="tokens after the prefix")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--kv-cache-memory", default="20MiB", help="of each prefill instance")
    parser.add_argument("--policies", nargs="+", default=["round_robin", "prefix_aware"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        asyncio.run(measure(options, processes))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


if __name__ == "__main__":
    main()
