"""Keeps the processes of a topology running: says who ended, starts it again, or gives up.

What to do is decided in `restarts.py`; how to start is in `supervise.py`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from scripts.restarts import Restarts
from scripts.supervise import Child, start

ROLE_GRACE_S = 10.0  # a role with nobody left, and nobody to come, ends the topology
POLL_S = 0.5


class ChildDied(Exception):
    """Somebody ended who should not have; the message is the one line for the user."""


class Keeper:
    """`children` is kept true in place. `status(url)` asks for its health, None if nobody answers;
    `on_change()` is awaited when pids or addresses are others than before."""

    def __init__(
        self,
        children: list[Child],
        *,
        restart: bool,
        status: Callable[[str], Awaitable[int | None]],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._children = children
        self._restart = restart
        self._status = status
        self._on_change = on_change
        self._restarts = Restarts()
        self._reported: set[int] = set()  # pids
        self._coming: set[int] = set()  # pids of those that were started again and are not ready
        self._last_death: dict[str, str] = {}  # role: a line
        self._empty_since: dict[str, float] = {}

    async def run(self) -> None:
        """Returns never; raises ChildDied when a role has nobody left and nobody will come."""
        while True:
            for number in range(len(self._children)):
                await self._look(number)
            for role in ("proxy", "prefill", "decode"):
                await self._check_role(role, time.monotonic())
            await asyncio.sleep(POLL_S)

    async def _look(self, number: int) -> None:
        child = self._children[number]
        name, now = child.plan.name, time.monotonic()
        if line := child.death():
            if child.pid not in self._reported:
                self._reported.add(child.pid)
                self._report(child, line, now)
            if self._restarts.is_due(name, now):
                await self._start_again(number, now)
        elif child.pid in self._coming and await self._status(child.plan.url) == 200:
            self._coming.discard(child.pid)
            _say(f"{name} (pid {child.pid}) is ready again")
            await self._on_change()

    def _report(self, child: Child, line: str, now: float) -> None:
        self._last_death[child.plan.role] = line
        if not self._restart:
            _say(line)
            return
        is_clean = child.process.poll() == 0
        lived_s = now - child.started_at
        delay_s = self._restarts.ended(child.plan.name, is_clean=is_clean, lived_s=lived_s, now=now)
        if delay_s is None:
            _say(f"{line}; it dies again and again and is left alone, see {child.plan.log}")
        else:
            _say(f"{line}; starting it again" + (f" in {delay_s:.0f} s" if delay_s else ""))

    async def _start_again(self, number: int, now: float) -> None:
        plan = self._children[number].plan
        if await self._status(plan.url) is not None:  # somebody else brought one back
            self._restarts.postpone(plan.name, now)
            return
        self._restarts.started(plan.name)
        self._children[number] = child = start(plan, keep_log=True)
        self._coming.add(child.pid)
        _say(f"{plan.name} runs as pid {child.pid}")
        await self._on_change()

    async def _check_role(self, role: str, now: float) -> None:
        members = [child for child in self._children if child.plan.role == role]
        is_empty = bool(members) and all(map(self._is_gone, members))
        if not is_empty or any([await self._status(m.plan.url) is not None for m in members]):
            self._empty_since.pop(role, None)
            return
        if now - self._empty_since.setdefault(role, now) > ROLE_GRACE_S:
            why = " and restarts do not help" if self._restart else ""
            raise ChildDied(f"no {role} is left{why}, stopping: {self._last_death[role]}")

    def _is_gone(self, child: Child) -> bool:
        """Dead, and not to come back by us."""
        if child.death() is None:
            return False
        return not self._restart or self._restarts.is_hopeless(child.plan.name)


def _say(line: str) -> None:
    print(f"xpyd up: {line}", file=sys.stderr, flush=True)
