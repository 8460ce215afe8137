"""`--disaggregate auto` beside `always` and `never`, on real processes: one prefill and one decode
instance, a core each, behind three proxies that differ in nothing else and take turns.

    python -m benchmarks.disaggregate_live --output live.json        # about four minutes

A 0.4B model with random weights; prompts of random tokens, so that no prefix is shared. The same
arrivals and lengths for every mode. What is compared is, as in `benchmarks.disaggregate`, the mean
time from request to last token: it holds every wait and every stall.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.handover import CORES, Timed, ask, wait_until_ready
from benchmarks.handover_sides import Servers, Side
from benchmarks.made_model import MEDIUM, SMALL, write_model
from benchmarks.percentiles import mean, percentile

MODES = ("always", "never", "auto")
WANTED = 24  # tokens per answer


@dataclass(frozen=True, slots=True)
class Load:
    rate: float  # requests per second
    share_long: float
    short: tuple[int, int] = (16, 65)  # tokens
    long: tuple[int, int] = (300, 500)

    def arrivals(self, seconds: float, seed: int) -> list[tuple[float, int]]:
        """(when, tokens of the prompt)."""
        rng, now, found = random.Random(seed), 0.0, []
        while (now := now + rng.expovariate(self.rate)) < seconds:
            is_long = rng.random() < self.share_long
            found.append((now, rng.randrange(*(self.long if is_long else self.short))))
        return found


LOADS = {
    "short prompts": Load(rate=1.5, share_long=0.0),
    "30 % long": Load(rate=0.6, share_long=0.3),
    "P at its limit": Load(rate=1.0, share_long=0.5),
}


async def window(
    session: aiohttp.ClientSession, side: Side, load: Load, seconds: float, seed: int
) -> dict[str, Any]:
    """One load on one proxy, to its last token."""
    before = await _counts(session, side)
    began = time.perf_counter()
    running: list[asyncio.Task[Timed]] = []
    for at, num_tokens in load.arrivals(seconds, seed):
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        running.append(asyncio.create_task(ask(session, side, num_tokens, WANTED)))
    answers = await asyncio.gather(*running)
    after = await _counts(session, side)
    whole, apart = (after[name] - before[name] for name in ("routed_whole", "routed_apart"))
    ttfts = sorted(answer.ttft_s for answer in answers)
    gaps = sorted(
        b - a
        for answer in answers
        for a, b in zip(answer.tokens_s, answer.tokens_s[1:], strict=False)
    )
    return {
        "requests": len(answers),
        "mean_s": mean([answer.tokens_s[-1] for answer in answers]),
        "ttft_p50_s": percentile(ttfts, 50),
        "ttft_p99_s": percentile(ttfts, 99),
        "itl_p50_s": percentile(gaps, 50),
        "itl_p99_s": percentile(gaps, 99),
        "share_whole": whole / max(1, whole + apart),
    }


async def _counts(session: aiohttp.ClientSession, side: Side) -> dict[str, int]:
    async with session.get(f"{side.url}/status") as response:
        counts: dict[str, int] = (await response.json())["counts"]
        return counts


async def measure(options: argparse.Namespace, servers: Servers, directory: Path) -> dict[str, Any]:
    model = write_model(directory / "model", SMALL if options.small else MEDIUM)
    roles = (("prefill", str(CORES[0])), ("decode", str(CORES[1])))
    first = servers.side("always", model, roles, proxy_arguments=("--disaggregate", "always"))
    known = [
        (role, url.removeprefix("http://"))
        for (role, _), url in zip(roles, first.instances, strict=True)
    ]
    sides: dict[str, Side] = {MODES[0]: first}
    for mode in MODES[1:]:
        sides[mode] = servers.front(mode, known, "--disaggregate", mode)
    found: dict[str, Any] = {}
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await wait_until_ready(session, servers, *sides.values())
        for mode, side in sides.items():  # warm; `auto` learns what its pair can do
            for num_tokens in (16, 64, 400):
                await ask(session, side, num_tokens, 8)
            print(f"[{time.strftime('%H:%M:%S')}] {mode} is ready", flush=True)
        for name, load in LOADS.items():
            rows = found[name] = {}
            for mode, side in sides.items():
                rows[mode] = await window(session, side, load, options.seconds, options.seed)
                if options.output:
                    options.output.write_text(json.dumps(found, indent=1))
    return found


def render(found: dict[str, Any]) -> str:
    heads = ("requests", "mean_s", "ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s")
    lines = [f"{'load':<18}{'mode':<9}" + "".join(f"{head:>12}" for head in heads) + "   whole"]
    for name, rows in found.items():
        for mode, row in rows.items():
            cells = "".join(f"{row[head]:>12.3f}" for head in heads)
            lines.append(f"{name:<18}{mode:<9}{cells}{row['share_whole']:>8.0%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals, in each window")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a 10M model: a look")
    parser.add_argument("--output", type=Path, help="file for the numbers, as JSON")
    options = parser.parse_args()
    if len(CORES) < 2:
        raise SystemExit("two cores are needed: one for prefill, one for decode")
    directory = Path(tempfile.mkdtemp(prefix="xpyd-disaggregate-"))
    servers = Servers(directory)
    try:
        found = asyncio.run(measure(options, servers, directory))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        servers.stop()
    print(render(found))


if __name__ == "__main__":
    main()
