"""A running deployment as seen from outside: what its proxy and instances say of themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import aiohttp

from common.errors import ConfigError

POLL_S = 0.2
AT_REST = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_blocks_held",
    "kv_blocks_used",
    "kv_blocks_reserved",
    "kv_leases",
    "kv_transfers_pending",
)


class Site:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url.rstrip("/")

    async def model(self) -> str:
        """What the proxy serves. Raises ConfigError if it does not answer."""
        try:
            return str((await self._get(f"{self.url}/v1/models"))["data"][0]["id"])
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, LookupError) as error:
            raise ConfigError(f"{self.url} does not say which model it serves: {error!r}") from None

    async def migrations(self) -> int:
        return int((await self._get(f"{self.url}/status"))["counts"]["migrations"])

    async def num_ready(self) -> int:
        rows = (await self._get(f"{self.url}/instances"))["instances"]
        return sum(row["state"] == "ready" for row in rows)

    async def is_healthy(self, url: str) -> bool:
        try:
            async with self.session.get(f"{url}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return False

    async def at_rest(self, instances: Iterable[str], timeout_s: float) -> str:
        """Wait until nothing is taken anywhere; what still is, if it does not come to that."""
        left = ""

        async def is_at_rest() -> bool:
            nonlocal left
            left = await self._taken(instances)
            return not left

        return "" if await until(is_at_rest, timeout_s) else left

    async def _taken(self, instances: Iterable[str]) -> str:
        if count := (await self._get(f"{self.url}/status"))["requests_in_flight"]:
            return f"{count} requests are in flight at the proxy"
        for url in instances:
            gauges = await self._gauges(url)
            found = [f"{name} {gauges[name]:g}" for name in AT_REST if gauges.get(name)]
            blocks = (await self._get(f"{url}/debug/kv"))["blocks"]
            if blocks["free"] + blocks["cached"] != blocks["total"]:
                found.append(f"blocks {blocks}")
            if found:
                return f"{url}: {', '.join(found)}"
        return ""

    async def _get(self, url: str) -> Any:
        async with self.session.get(url) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def _gauges(self, url: str) -> dict[str, float]:
        """By name without prefix; labelled rows of one name are added up."""
        async with self.session.get(f"{url}/metrics") as answer:
            answer.raise_for_status()
            text = await answer.text()
        found: dict[str, float] = {}
        for row in text.splitlines():
            if row and not row.startswith("#"):
                name, value = row.rsplit(" ", 1)
                key = name.partition("{")[0].partition(":")[2]
                found[key] = found.get(key, 0.0) + float(value)
        return found


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    """Poll until it holds; False if it does not in time. Not answering is not holding."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if await condition():
                return True
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            pass
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
