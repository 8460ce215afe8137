"""What a JSON schema costs per token: ITL of many streams with it and without it, in turns.

    xpyd serve MODEL --role both --port 8300 --cpu-cores 1
    python -m benchmarks.structured_output --base-url http://127.0.0.1:8300 --streams 32 --rounds 5

One server, one run: the two kinds take turns, each round gives one ratio. Same prompts, lengths and
sampling; the schema asks for more than `--tokens` can hold, so no stream ends early.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import aiohttp

from benchmarks.percentiles import mean, median, percentile
from benchmarks.stream import AnswerStream

SCHEMA = {
    "type": "array",
    "minItems": 5000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"type": "string", "pattern": "^[a-z]{2,8}@[a-z]{2,8}[.](com|org)$"},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
            "address": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/address"}]},
        },
        "required": ["name", "age", "email", "tags", "address"],
        "additionalProperties": False,
    },
    "$defs": {
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 40},
                "zip": {"type": "integer"},
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        }
    },
}
FREE: dict[str, Any] = {"ignore_eos": True}
CONSTRAINED: dict[str, Any] = {"structured_outputs": {"json": SCHEMA}}


async def stream_gaps(
    session: aiohttp.ClientSession, url: str, number: int, tokens: int, options: dict[str, Any]
) -> list[float]:
    """Seconds between the tokens of one stream."""
    body = {
        "prompt": [(number * 31 + i) % 1000 + 10 for i in range(32)],
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": number,
        "stream": True,
        "return_token_ids": True,
        **options,
    }
    answer = AnswerStream()
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            answer.feed(chunk, time.perf_counter())
    arrivals = answer.finish(time.perf_counter()).arrivals_s
    if len(arrivals) < tokens:
        raise SystemExit(f"stream {number} ended after {len(arrivals)} tokens")
    return [after - before for before, after in pairwise(arrivals)]


async def round_of(
    session: aiohttp.ClientSession, url: str, streams: int, tokens: int, options: dict[str, Any]
) -> list[float]:
    """Gaps of all streams, sorted."""
    runs = (stream_gaps(session, url, n, tokens, options) for n in range(streams))
    return sorted(gap for gaps in await asyncio.gather(*runs) for gap in gaps)


async def compare(options: argparse.Namespace) -> None:
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        url, size = options.base_url, (options.streams, options.tokens)
        for kind in (FREE, CONSTRAINED):
            await round_of(session, url, options.streams, 8, kind)  # warm, and compiled
        ratios = []
        print("round      free: mean  p50  p99 ms    schema: mean  p50  p99 ms    ratio of means")
        for number in range(options.rounds):
            order = (FREE, CONSTRAINED) if number % 2 == 0 else (CONSTRAINED, FREE)
            found = {id(kind): await round_of(session, url, *size, kind) for kind in order}
            free, constrained = found[id(FREE)], found[id(CONSTRAINED)]
            ratios.append(mean(constrained) / mean(free))
            print(f"{number:5} {_row(free)} {_row(constrained)} {ratios[-1]:12.3f}")
        print(f"ratio: median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def _row(gaps: Sequence[float]) -> str:
    values = (mean(gaps), percentile(gaps, 50), percentile(gaps, 99))
    return "    " + " ".join(f"{value * 1000:7.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description="ITL with and without a JSON schema.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8300")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="per stream")
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
