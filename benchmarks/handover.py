"""What the hand-over costs: prefill on one core, decode on another, beside one engine for both.

    python -m benchmarks.handover --output handover.json           # all rows, about seven minutes
    python -m benchmarks.handover --rows ttft overhead --rounds 2  # a look

Sides take turns, request by request, so that the machine's slow minutes hit all of them:

    1P1D          prefill on the first core, decode on the second
    one core      `--role both` on the first core
    two cores     `--role both` on both cores, for the streams, with large and with small chunks

Models have random weights; prompts are random token ids, so that no prefix is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import bare_loops
from benchmarks.handover_sides import Servers, Side
from benchmarks.handover_table import render
from benchmarks.made_model import MEDIUM, SMALL, write_model
from benchmarks.percentiles import median, percentile
from benchmarks.prefix_routing import healthy

ROWS = ("ttft", "overhead", "interference", "bus")
LENGTHS = (512, 2048)
SETTLE_S = 2.0  # after the streams have begun, and after a window
PERIOD_S = 5.0  # between long prompts
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: when its tokens came, in seconds after it was asked for."""

    tokens_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        return self.tokens_s[0]

    @property
    def first_gap_s(self) -> float:
        return self.tokens_s[1] - self.tokens_s[0]

    @property
    def step_s(self) -> float:
        """A decode step when nothing else happens: the median of the later gaps."""
        later = self.tokens_s[1:]
        return median([b - a for a, b in zip(later, later[1:], strict=False)])


async def stream(
    session: aiohttp.ClientSession, url: str, num_tokens: int, wanted: int, arrivals: list[float]
) -> None:
    """Ask for `wanted` tokens after a random prompt; note when each comes."""
    prompt = [random.randrange(10, 3000) for _ in range(num_tokens)]
    sampling = {"temperature": 0, "max_tokens": wanted, "ignore_eos": True}
    body = {"token_ids": prompt, "sampling_params": sampling, "stream": True}
    async with session.post(f"{url}/inference/v1/generate", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            now = time.perf_counter()
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise SystemExit(f"{url} answered {event['error']}")
                arrivals.extend([now] * len(event["choices"][0]["token_ids"]))


async def ask(session: aiohttp.ClientSession, side: Side, num_tokens: int, wanted: int) -> Timed:
    arrivals: list[float] = []
    began = time.perf_counter()
    await stream(session, side.url, num_tokens, wanted, arrivals)
    return Timed(tuple(at - began for at in arrivals))


async def alternate(
    session: aiohttp.ClientSession, sides: Sequence[Side], num_tokens: int, wanted: int, rounds: int
) -> list[list[Timed]]:
    """Per side its answers; one round more is asked and not counted."""
    answers: list[list[Timed]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for taken, side in zip(answers, sides, strict=True):
            timed = await ask(session, side, num_tokens, wanted)
            if number:
                taken.append(timed)
    return answers


# --- rows -----------------------------------------------------------------------------------------


async def measure_ttft(
    session: aiohttp.ClientSession, pair: Side, one: Side, rounds: int
) -> list[dict[str, Any]]:
    """First token, and the gap after it."""
    found = []
    for num_tokens in LENGTHS:
        apart, together = await alternate(session, (pair, one), num_tokens, 10, rounds)
        ratios = [a.ttft_s / b.ttft_s for a, b in zip(apart, together, strict=True)]
        gaps = [a.first_gap_s - 2 * a.step_s for a in apart]
        found.append(
            {
                "prompt_tokens": num_tokens,
                "ttft_1p1d_ms": _ms(a.ttft_s for a in apart),
                "ttft_one_core_ms": _ms(b.ttft_s for b in together),
                "ttft_ratio": median(ratios),
                "ttft_ratio_lowest": min(ratios),
                "ttft_ratio_highest": max(ratios),
                "first_gap_ms": _ms(a.first_gap_s for a in apart),
                "first_gap_one_core_ms": _ms(b.first_gap_s for b in together),
                "step_ms": _ms(a.step_s for a in apart),
                "first_gap_less_2_steps_ms": _ms(gaps),
            }
        )
    return found


async def measure_overhead(
    session: aiohttp.ClientSession, pair: Side, one: Side, rounds: int
) -> dict[str, Any]:
    """What a request of 64 tokens takes longer than on one engine: to its first token, to its
    second, to its end."""
    apart, together = await alternate(session, (pair, one), 64, 16, rounds)
    differences = {
        "first": [a.ttft_s - b.ttft_s for a, b in zip(apart, together, strict=True)],
        "second": [a.tokens_s[1] - b.tokens_s[1] for a, b in zip(apart, together, strict=True)],
        "end": [a.tokens_s[-1] - b.tokens_s[-1] for a, b in zip(apart, together, strict=True)],
    }
    return {
        "requests": len(apart),
        "ttft_1p1d_ms": _ms(a.ttft_s for a in apart),
        "ttft_one_core_ms": _ms(b.ttft_s for b in together),
        "whole_1p1d_ms": _ms(a.tokens_s[-1] for a in apart),
        "whole_one_core_ms": _ms(b.tokens_s[-1] for b in together),
        **{f"more_to_{name}_token_ms": _ms(values) for name, values in differences.items()},
    }


async def measure_interference(
    session: aiohttp.ClientSession, side: Side, seconds: float
) -> dict[str, Any]:
    """Gaps between tokens of two running streams, alone and while long prompts arrive."""
    arrivals: list[list[float]] = [[], []]
    streams = [
        asyncio.create_task(stream(session, side.url, 64, 6000, taken)) for taken in arrivals
    ]
    try:
        await _streaming(arrivals)
        quiet = await _window(seconds)
        prompts: list[asyncio.Task[Timed]] = []
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            prompts.append(asyncio.create_task(ask(session, side, LENGTHS[-1], 4)))
            await asyncio.sleep(PERIOD_S)
        answers = await asyncio.wait_for(asyncio.gather(*prompts), 300)
        busy = (began, time.perf_counter())
        for running in streams:
            if running.done():
                running.result()  # ended early: the reason
    finally:
        for running in streams:
            running.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    alone, beside = _gaps(arrivals, quiet), _gaps(arrivals, busy)
    ttfts = [answer.ttft_s for answer in answers]
    return {
        "side": side.name,
        "alone_p50_ms": percentile(alone, 50) * 1e3,
        "alone_p99_ms": percentile(alone, 99) * 1e3,
        "beside_p50_ms": percentile(beside, 50) * 1e3,
        "beside_p99_ms": percentile(beside, 99) * 1e3,
        "beside_max_ms": beside[-1] * 1e3,
        "ratio_p50": percentile(beside, 50) / percentile(alone, 50),
        "ratio_p99": percentile(beside, 99) / percentile(alone, 99),
        "long_prompt_ttft_ms": [round(ttft * 1e3) for ttft in ttfts],
    }


async def _streaming(arrivals: list[list[float]]) -> None:
    """Until both streams run, and some time more."""
    deadline = time.perf_counter() + 60
    while min(len(taken) for taken in arrivals) < 10:
        if time.perf_counter() > deadline:
            raise SystemExit("the streams did not start")
        await asyncio.sleep(0.05)
    await asyncio.sleep(SETTLE_S)


async def _window(seconds: float) -> tuple[float, float]:
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    return began, time.perf_counter()


def _gaps(arrivals: list[list[float]], window: tuple[float, float]) -> list[float]:
    """Of all streams, those that ended within the window; rising."""
    begin, end = window
    return sorted(
        later - earlier
        for taken in arrivals
        for earlier, later in zip(taken, taken[1:], strict=False)
        if begin <= later <= end
    )


def _ms(seconds: Any) -> float:
    """The median, in milliseconds."""
    return median(list(seconds)) * 1e3


# --- the run --------------------------------------------------------------------------------------


async def measure(options: argparse.Namespace, servers: Servers, directory: Path) -> dict[str, Any]:
    first, second = str(CORES[0]), str(CORES[1])
    apart, together = (("prefill", first), ("decode", second)), (("both", first),)
    found: dict[str, Any] = {}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        if "bus" in options.rows:
            _say("bare loops")
            found["bus"] = await asyncio.to_thread(bare_loops.beside, CORES, options.seconds / 2)
            per_token_s = await asyncio.to_thread(bare_loops.gemm_floor, CORES[0])
            found["gemm_floor_ms"] = {str(n): n * per_token_s * 1e3 for n in LENGTHS}
            _keep(options, found)
        if "overhead" in options.rows:
            model = write_model(directory / "small", SMALL)
            pair = servers.side("1P1D-small", model, apart)
            one = servers.side("one-core-small", model, together)
            await wait_until_ready(session, servers, pair, one)
            _say("overhead of short prompts")
            found["overhead"] = await measure_overhead(session, pair, one, options.rounds * 20)
            _keep(options, found)
            servers.stop()
        if not {"ttft", "interference"} & set(options.rows):
            return found
        model = write_model(directory / "medium", MEDIUM)
        pair = servers.side("1P1D", model, apart)
        if "ttft" in options.rows:
            one = servers.side("one core", model, together)
            await wait_until_ready(session, servers, pair, one)
            _say("first token and first gap")
            found["ttft"] = await measure_ttft(session, pair, one, options.rounds)
            _keep(options, found)
        if "interference" in options.rows:
            found["interference"] = await _interference(options, servers, session, pair, model)
    return found


async def _interference(
    options: argparse.Namespace,
    servers: Servers,
    session: aiohttp.ClientSession,
    pair: Side,
    model: Path,
) -> list[dict[str, Any]]:
    both = (("both", ",".join(map(str, CORES[:2]))),)
    sides = [pair]
    for name, budget in (("two cores", "2048"), ("two cores, small chunks", "128")):
        sides.append(servers.side(name, model, both, "--max-num-batched-tokens", budget))
    await wait_until_ready(session, servers, *sides)
    found = []
    for side in sides:
        _say(f"streams beside long prompts: {side.name}")
        await ask(session, side, LENGTHS[-1], 4)  # warm
        found.append(await measure_interference(session, side, options.seconds))
    return found


async def wait_until_ready(session: aiohttp.ClientSession, servers: Servers, *sides: Side) -> None:
    _say("starting " + ", ".join(side.name for side in sides))
    for side in sides:
        for url in (*side.instances, side.url):
            await healthy(session, url)
            servers.check()
        await _all_known(session, side)


async def _all_known(session: aiohttp.ClientSession, side: Side) -> None:
    """Until the proxy can use every instance: with one role only it would not hand over."""
    while True:
        async with session.get(f"{side.url}/instances") as response:
            rows = (await response.json())["instances"]
        if sum(row["state"] == "ready" for row in rows) == len(side.instances):
            return
        await asyncio.sleep(0.1)


def _keep(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Row by row: a run that is cut short leaves what it has."""
    if options.output:
        options.output.write_text(json.dumps(found, indent=1))


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5, help="of alternating requests")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window of streams")
    parser.add_argument("--output", type=Path, help="file for the numbers, as JSON")
    options = parser.parse_args()
    if len(CORES) < 2:
        raise SystemExit("two cores are needed: one for prefill, one for decode")
    load_before = os.getloadavg()[0]
    directory = Path(tempfile.mkdtemp(prefix="xpyd-handover-"))
    servers = Servers(directory)
    try:
        found = asyncio.run(measure(options, servers, directory))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        servers.stop()
    found["load_before"] = load_before
    with suppress(ImportError):
        import torch

        found["torch"] = torch.__version__
    _keep(options, found)
    print(render(found))


if __name__ == "__main__":
    main()
