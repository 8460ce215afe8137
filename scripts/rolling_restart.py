"""`xpyd rolling-restart`: every instance of a running `xpyd up`, one after the other, under load.

An instance is asked to end (SIGTERM): it takes nothing new, finishes or hands over what it runs,
waits for its leases and exits; the launcher starts it again. The next one's turn comes when the
proxy can use the new one. The proxy itself is left alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

POLL_S = 0.2
REQUEST_TIMEOUT_S = 5.0


class CannotRestart(Exception):
    """The message is the one line for the user."""


@dataclass(frozen=True, slots=True)
class Instance:
    name: str  # prefill-0
    url: str
    pid: int


def run(topology: str, timeout_s: float) -> int:
    try:
        asyncio.run(_Roll(Path(topology), timeout_s).run())
    except CannotRestart as error:
        print(f"xpyd rolling-restart: {error}", file=sys.stderr)
        return 1
    return 0


def read_topology(path: Path) -> dict[str, Any]:
    """Raises CannotRestart."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise CannotRestart(
            f"{path} is not there: is `xpyd up` running in this directory?"
        ) from None
    except (OSError, ValueError) as error:
        raise CannotRestart(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("proxy"), dict):
        raise CannotRestart(f"{path} is no topology of `xpyd up`")
    return found


def instances_in(topology: Mapping[str, Any]) -> list[Instance]:
    return [
        Instance(f"{role}-{number}", row["url"], row["pid"])
        for role in ("prefill", "decode")
        for number, row in enumerate(topology[role])
    ]


class _Roll:
    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def run(self) -> None:
        topology = read_topology(self._path)
        if not topology.get("restart"):
            raise CannotRestart(
                "this topology runs with --no-restart: nobody would start them again"
            )
        proxy = topology["proxy"]
        self._url = f"{proxy['url']}/instances"
        keys = proxy["env"].get("XPYD_API_KEY") or os.environ.get("XPYD_API_KEY", "")
        headers = {"Authorization": f"Bearer {keys.split(',')[0]}"} if keys else {}
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=False)  # the proxy of this machine, as its file says
        async with aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=connector
        ) as self._session:
            for instance in instances_in(topology):
                await self._restart(instance)

    async def _restart(self, instance: Instance) -> None:
        began = time.monotonic()
        before = await self._incarnation(instance)
        if before is None:
            raise CannotRestart(f"{instance.name} is not ready, nothing more is restarted")
        try:
            os.kill(instance.pid, signal.SIGTERM)
        except OSError as error:
            raise CannotRestart(f"{instance.name} (pid {instance.pid}): {error.strerror}") from None
        while time.monotonic() - began < self._timeout_s:
            await asyncio.sleep(POLL_S)
            if await self._incarnation(instance) not in (None, before):
                print(f"{instance.name} restarted in {time.monotonic() - began:.1f} s", flush=True)
                return
        raise CannotRestart(
            f"{instance.name} was not back after {self._timeout_s:.0f} s; nothing more is restarted"
        )

    async def _incarnation(self, instance: Instance) -> str | None:
        """Of the instance that the proxy can use at this place; None while there is none."""
        try:
            async with self._session.get(self._url) as answer:
                if answer.status == 401:
                    raise CannotRestart("the proxy wants an API key: set XPYD_API_KEY")
                rows = (await answer.json())["instances"] if answer.status == 200 else []
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return None
        found = [r for r in rows if r["url"] == instance.url and r["state"] == "ready"]
        return str(found[0]["incarnation"]) if found else None
