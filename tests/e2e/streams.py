"""Streams that something happens to: how each ended, and whether they run already."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from tests.e2e.cluster import Cluster


async def outcome(
    made: Cluster, tokens: list[int], sampling: dict[str, Any], seen: list[int]
) -> tuple[list[int], str]:
    """(tokens seen, "done" | "error" | what went wrong). `seen` is filled while they come."""
    try:
        async for event in made.stream(made.url, tokens, **sampling):
            if "error" in event:
                return seen, "error"
            for choice in event["choices"]:
                seen += choice["token_ids"]
                if choice["finish_reason"]:
                    return seen, "done"
    except AssertionError as error:
        return seen, f"refused: {error}"
    except aiohttp.ClientError as error:
        return seen, f"broken: {error}"
    return seen, "silent end"


async def until_flowing(
    streams: list[asyncio.Task[Any]], seen: list[list[int]], timeout_s: float = 60.0
) -> None:
    """Wait until each stream has a few tokens, or is over already."""
    deadline = time.monotonic() + timeout_s
    while not all(len(t) > 5 or s.done() for t, s in zip(seen, streams, strict=True)):
        assert time.monotonic() < deadline, "no tokens come"
        await asyncio.sleep(0.02)
