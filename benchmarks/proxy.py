"""What the proxy costs, beside no router and a peer's, in one run.

    python -m benchmarks.proxy
    python -m benchmarks.proxy --requests 50000 --peer \\
      "vllm-router=/path/to/venv/bin/vllm-router --worker-urls {backend} --policy round_robin \
       --host 127.0.0.1 --port {port} --prometheus-port {spare_port}"

Three parts: the time to the first byte of an answer, one request after the other, each router in
turns with `direct`; CPU seconds per streamed token; memory over many requests (ours only). Engines
are stand-ins that do no compute (`routers.py` says what each stands before), so what is left is the
router. *Added* is over the median of `direct`, where the client asks the server itself; `bare` is
our HTTP server around an app that only answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.percentiles import median, percentile
from benchmarks.routers import (
    Processes,
    Router,
    bare,
    cpu_seconds,
    floor,
    ours,
    peer,
    resident_bytes,
)

PROMPT = "Tell me something about the sea."
TARGETS = {
    "added_ttft_ms_p50": 1.0,
    "added_ttft_ms_p99": 5.0,
    "tokens_per_core_second": 15_000,
    "rss_growth_mib": 8.0,
}
START_S = 60.0
Maker = Callable[[Processes, float], Router]
WARM_SHARE = 0.2  # of the requests of the memory part, before growth counts


@dataclass(frozen=True, slots=True)
class Client:
    session: aiohttp.ClientSession
    router: Router

    async def stream(self, num_tokens: int) -> tuple[float, int]:
        """(seconds to the first event, events) of one answer."""
        body = {
            "model": self.router.model,
            "prompt": PROMPT,
            "max_tokens": num_tokens,
            "temperature": 0,
            "stream": True,
        }
        began, first, count = time.perf_counter(), 0.0, 0
        async with self.session.post(f"{self.router.url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for piece in response.content.iter_any():
                first = first or time.perf_counter() - began
                count += piece.count(b"data: ")
        return first, count - 1  # less [DONE]

    async def ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                await self.stream(2)
                return
            except aiohttp.ClientError as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{self.router.name} does not answer: {error}") from None
            await asyncio.sleep(0.2)


async def times_to_first(clients: list[Client], rounds: int) -> dict[str, Any]:
    """One request at a time, in turns, so that all meet the same machine."""
    taken: dict[str, list[float]] = {client.router.name: [] for client in clients}
    for number in range(rounds):
        for client in clients:
            first_s, _ = await client.stream(2)
            if number >= rounds // 10:  # the first ones warm up
                taken[client.router.name].append(first_s * 1e3)
    base = median(taken["direct"])
    found = {}
    for name, values in taken.items():
        p50, p99 = (percentile(sorted(values), q) for q in (50, 99))
        found[name] = {
            "ttft_ms_p50": round(p50, 3),
            "ttft_ms_p99": round(p99, 3),
            "added_ttft_ms_p50": round(p50 - base, 3),
            "added_ttft_ms_p99": round(p99 - base, 3),
        }
    return found


async def throughput(client: Client, streams: int, tokens: int) -> dict[str, Any]:
    await asyncio.gather(*(client.stream(20) for _ in range(streams)))
    pid = client.router.pid
    cpu_s, wall_s = cpu_seconds(pid), time.monotonic()
    counts = await asyncio.gather(*(client.stream(tokens) for _ in range(streams)))
    cpu_s, wall_s = cpu_seconds(pid) - cpu_s, time.monotonic() - wall_s
    total = streams * tokens
    return {
        "streams": streams,
        "tokens": total,
        "events": sum(count for _, count in counts),
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "cpu_us_per_token": round(cpu_s / total * 1e6, 1),
        "tokens_per_core_second": round(total / cpu_s),
    }


async def memory(client: Client, requests: int, concurrency: int, limit_s: float) -> dict[str, Any]:
    """Resident memory while short requests come and go."""
    left, done = iter(range(requests)), 0
    pid, began = client.router.pid, time.monotonic()
    rows: list[tuple[int, float]] = []
    mark = max(1, requests // 20)

    async def ask_on() -> None:
        nonlocal done
        for _ in left:
            if time.monotonic() - began > limit_s:
                return
            await client.stream(4)
            done += 1
            if done % mark == 0:
                rows.append((done, resident_bytes(pid) / 2**20))
                print(f"  {done:>6} requests, {rows[-1][1]:.1f} MiB", file=sys.stderr, flush=True)

    cpu_s = cpu_seconds(pid)
    await asyncio.gather(*(ask_on() for _ in range(concurrency)))
    cpu_s = cpu_seconds(pid) - cpu_s
    warm = [mib for count, mib in rows if count >= WARM_SHARE * done]
    return {
        "requests": done,
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_ms_per_request": round(cpu_s / max(1, done) * 1e3, 3),
        "rss_mib": [round(mib, 1) for _, mib in rows],
        "rss_growth_mib": round(warm[-1] - warm[0], 1) if warm else None,
    }


async def measure(options: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    makers: list[Maker] = [floor, ours]
    for given in options.peer:
        name, _, command = given.partition("=")
        makers.append(peer(name, command))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    results: dict[str, Any] = {}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def fresh(step_s: float, *more: Maker) -> list[Client]:
            clients = [Client(session, make(processes, step_s)) for make in (*makers, *more)]
            for client in clients:
                await client.ready()
            return clients

        async def part(name: str, work: Awaitable[Any]) -> None:
            results[name] = await work
            print(json.dumps({name: results[name]}), flush=True)

        quick = await fresh(0.0005, bare)
        direct, xpyd, *peers, alone = quick
        await part("first", times_to_first([direct, alone, xpyd], options.rounds))
        for client in peers:  # apart: a slow one would let the machine fall asleep for all
            await part(
                f"first {client.router.name}", times_to_first([direct, client], options.rounds)
            )
        if options.requests:
            await part(
                "memory",
                memory(xpyd, options.requests, options.concurrency, options.memory_limit_s),
            )
        for client in await fresh(options.step_s):
            if client.router.name != "direct":
                work = throughput(client, options.streams, options.tokens)
                await part(f"streams {client.router.name}", work)
    return results


def judged(results: dict[str, Any]) -> dict[str, Any]:
    """Our numbers beside their targets."""
    shown = results["first"]["xpyd"] | results["streams xpyd"] | results.get("memory", {})
    found = {}
    for name, target in TARGETS.items():
        if (value := shown.get(name)) is not None:
            is_met = value >= target if name == "tokens_per_core_second" else value <= target
            found[name] = {"measured": value, "target": target, "met": is_met}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500, help="requests each, of the first part")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=300, help="per stream")
    parser.add_argument("--step-s", type=float, default=0.02, help="pace of the streams")
    parser.add_argument("--requests", type=int, default=0, help="of the memory part; 0: leave out")
    parser.add_argument("--concurrency", type=int, default=64, help="of the memory part")
    parser.add_argument("--memory-limit-s", type=float, default=180.0)
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="how to start it, with {backend}, {port} and {spare_port}; may be given again",
    )
    options = parser.parse_args()
    processes = Processes(Path(tempfile.mkdtemp(prefix="xpyd-proxy-")) / "log")
    try:
        results = uvloop.run(measure(options, processes))
    finally:
        processes.end()
    print(json.dumps({"targets": judged(results)}))


if __name__ == "__main__":
    main()
