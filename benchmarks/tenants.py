"""What one key's load and cache are to another key, with real processes: fairness and privacy.

    python -m benchmarks.tenants

Key `crowd` keeps 200 requests open; key `guest` asks one thing after the other, on a quiet fleet
and beside the crowd; then beside the same crowd under the crowd's own key, which is what it would
be without fairness. Second part: `guest` asks prompts that are in the prefix cache for `crowd`, and
prompts that nobody has asked; nothing in the time to first token may tell them apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.percentiles import median, percentile
from benchmarks.prefix_routing import healthy, start
from benchmarks.routers import MODEL, free_port

CROWD, GUEST = "crowd-key", "guest-key"


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        self._session = session
        self._url = f"{url}/v1/completions"
        self._rng = random.Random(seed)

    def prompt(self, num_tokens: int) -> list[int]:
        return [self._rng.randrange(10, 3000) for _ in range(num_tokens)]

    async def first_token_s(self, key: str, prompt: list[int], max_tokens: int) -> float:
        """Seconds to the first token of a stream that is read to its end."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        asked, first = time.monotonic(), 0.0
        headers = {"Authorization": f"Bearer {key}"}
        async with self._session.post(
            self._url, json={**body, "ignore_eos": True}, headers=headers
        ) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b'data: {"error"'):
                    raise SystemExit(line.decode())
                if not first and line.startswith(b"data: {"):
                    first = time.monotonic() - asked
        return first

    async def one_by_one(self, key: str, count: int, num_tokens: int) -> list[float]:
        return [await self.first_token_s(key, self.prompt(num_tokens), 4) for _ in range(count)]

    @contextlib.asynccontextmanager
    async def crowd(self, options: argparse.Namespace) -> AsyncIterator[list[float]]:
        """Keeps the requests of the crowd open; their times to first token."""
        seen: list[float] = []

        async def one() -> None:
            while True:
                prompt = self.prompt(options.prompt_len)
                seen.append(await self.first_token_s(CROWD, prompt, options.answer_len))

        tasks = [asyncio.create_task(one()) for _ in range(options.crowd)]
        try:
            await asyncio.sleep(options.settle_s)
            for task in tasks:
                if task.done():
                    task.result()
            seen.clear()
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def fairness(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    count, size = options.asks, options.prompt_len
    quiet = await client.one_by_one(GUEST, count, size)
    async with client.crowd(options) as crowd:
        beside = await client.one_by_one(GUEST, count, size)
        among = await client.one_by_one(CROWD, 2, size)
    return {
        "quiet_ms": spread(quiet),
        "beside_the_crowd_ms": spread(beside),
        "as_one_of_the_crowd_ms": spread(among),
        "crowd_ms": spread(crowd),
        "ratio": round(median(beside) / median(quiet), 2),
        "ratio_without_fairness": round(median(among) / median(quiet), 2),
    }


async def privacy(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """In turns, so that both sides meet the same minutes of the machine."""
    times: dict[str, list[float]] = {"others_prefix": [], "new_prefix": [], "own_prefix": []}
    for _ in range(options.asks):
        known = client.prompt(options.prefix_len)
        await client.first_token_s(CROWD, known, 4)
        asks = [
            ("others_prefix", GUEST, known),
            ("new_prefix", GUEST, client.prompt(options.prefix_len)),
        ]
        if len(times["new_prefix"]) % 2:
            asks.reverse()
        for name, key, prompt in [*asks, ("own_prefix", CROWD, known)]:
            times[name].append(await client.first_token_s(key, prompt, 4))
    new = median(times["new_prefix"])
    return {
        **{f"{name}_ms": spread(found) for name, found in times.items()},
        "others_over_new": round(median(times["others_prefix"]) / new, 3),
        "own_over_new": round(median(times["own_prefix"]) / new, 3),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{q}": round(percentile(ordered, q) * 1e3, 1) for q in (10, 50, 90) if ordered}


async def measure(options: argparse.Namespace, processes: list[subprocess.Popen[bytes]]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="xpyd-tenants-"))
    cores = sorted(os.sched_getaffinity(0))
    where = []
    for number, role in enumerate(("prefill", "decode")):
        address = f"127.0.0.1:{free_port()}"
        flags = ["--role", role, "--port", address.partition(":")[2]]
        flags += ["--cpu-cores", str(cores[number % len(cores)]), "--kv-cache-memory", "256MiB"]
        flags += ["--max-num-batched-tokens", str(options.budget)]
        log = directory / f"{role}.log"
        processes.append(start(log, "serve", options.model, *flags))
        where.append(f"--{role}={address}")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--port", str(port), "--registry-port", str(free_port()), "--open-metrics"]
    keys = ["--api-key", CROWD, GUEST]
    processes.append(start(directory / "proxy.log", "proxy", *flags, *where, *keys))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await healthy(session, url)
        client = Client(session, url, options.seed)
        await client.one_by_one(GUEST, 5, options.prompt_len)
        parts = {"fairness": fairness, "privacy": privacy}
        for name in options.parts:
            for number in range(options.rounds):
                found = await parts[name](client, options)
                print(json.dumps({"part": name, "round": number, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--crowd", type=int, default=200, help="requests open at once, of one key")
    parser.add_argument("--asks", type=int, default=20, help="of the guest, each time")
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--answer-len", type=int, default=32)
    parser.add_argument("--prefix-len", type=int, default=1024)
    parser.add_argument("--budget", type=int, default=512, help="--max-num-batched-tokens")
    parser.add_argument("--settle-s", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["fairness", "privacy"])
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
