"""The role an instance plays, and how it takes on another one without loading weights again.

    serving ──asked──▶ preparing ──the new worker stands──▶ draining ──▶ swapped, serving
       ▲                  │ it cannot be made                  │ shut down meanwhile
       └──────────────────┴───────── the old role goes on ◀────┘

What the old role runs may finish; what is left at the end of the drain is moved by the proxies,
because a new role is a new incarnation to them. Knows no role by name, no socket and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from common.config import ServeConfig
from common.errors import BadRequest, ConfigError, Unavailable, XpydError
from common.instance.outbox import Send
from common.instance.parts import EngineParts
from common.wire import Role

log = logging.getLogger(__name__)

DRAIN_POLL_S = 0.05
MAX_DRAIN_S = 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """`instance_id` survives a restart at the same address and a new role, `incarnation` does
    not."""

    instance_id: str
    incarnation: str


class Worker(Protocol):
    """What a role does with the proxies' messages."""

    side_channel: str  # tcp://…, "" if the role has none

    def handle(self, peer: bytes, message: Any) -> None: ...
    def peer_lost(self, peer: bytes) -> None: ...
    def num_open(self) -> int:
        """Requests and leases that a drain waits for."""
        ...

    def num_waiting(self) -> int:
        """Requests that wait outside the engine."""
        ...

    def ledger(self) -> dict[str, Any]: ...
    def gauges(self) -> dict[str, Callable[[], float]]: ...
    def counters(self) -> dict[str, Callable[[], float]]: ...
    async def close(self) -> None:
        """Abort what it runs, give all blocks back, listen to the engine no more."""
        ...


@dataclass(frozen=True, slots=True)
class RolePlan:
    """One role of one instance, before there is an engine."""

    kv_connector: str  # "" if the role exchanges no KV
    make_worker: Callable[[EngineParts, Identity, Send], Awaitable[Worker]]


PlanRole = Callable[[ServeConfig], RolePlan]  # raises ConfigError


class Roles:
    """`role`, `identity` and `worker` are those of now; `on_change` is told when they are others,
    `on_drain` when new work should go elsewhere for a while, or come again."""

    def __init__(
        self,
        plans: Mapping[Role, PlanRole],
        config: ServeConfig,
        instance_id: str,
        *,
        on_drain: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        """Raises ConfigError if the configured role cannot be."""
        self.role: Role = config.role
        self.identity = Identity(instance_id, uuid.uuid4().hex)
        self.worker: Worker
        self.is_draining = False  # because of a new role; a shutdown is the caller's business
        self.num_switches = 0
        self._plans = plans
        self._config = config
        self._plan = plans[config.role](config)
        self._on_drain = on_drain
        self._on_change = on_change
        self._parts: EngineParts
        self._send: Send
        self._switching: asyncio.Task[None] | None = None
        self._retired: Counter[str] = Counter()  # counts of the workers of earlier roles

    @property
    def kv_connector(self) -> str:
        return self._plan.kv_connector

    async def start(self, parts: EngineParts, send: Send) -> None:
        self._parts, self._send = parts, send
        self.worker = await self._plan.make_worker(parts, self.identity, send)

    async def switch(self, role: Role, drain_s: float) -> None:
        """Returns when the instance serves `role`; raises XpydError if it keeps the old one.

        The caller may go: what has begun goes on.
        """
        if not 0.0 <= drain_s <= MAX_DRAIN_S:
            raise BadRequest(f"drain_s: must be from 0 to {MAX_DRAIN_S:.0f} seconds", "drain_s")
        if self._switching is not None:
            raise Unavailable("this instance is changing its role already")
        if role == self.role:
            return
        self._switching = asyncio.create_task(self._switch(role, drain_s))
        self._switching.add_done_callback(self._ended)
        await asyncio.shield(self._switching)

    def count(self, name: str) -> float:
        """A counter of the role's worker, over all roles that this process has had."""
        read = self.worker.counters().get(name)
        return self._retired[name] + (read() if read is not None else 0)

    def gauge(self, name: str) -> float:
        """0 in a role that has no such gauge."""
        read = self.worker.gauges().get(name)
        return read() if read is not None else 0

    async def close(self) -> None:
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)
        await self.worker.close()

    # --- inside ------------------------------------------------------------------------------

    async def _switch(self, role: Role, drain_s: float) -> None:
        identity = replace(self.identity, incarnation=uuid.uuid4().hex)
        plan, worker = await self._prepare(role, identity)
        self.is_draining = True
        try:
            self._on_drain()
            await self._drain(drain_s)
        except BaseException:
            self.is_draining = False
            self._on_drain()
            await worker.close()
            raise
        old, self.worker = self.worker, worker
        before, self.role, self.identity, self._plan = self.role, role, identity, plan
        self.is_draining = False
        self.num_switches += 1
        self._on_change()  # first of all: proxies learn of it before anything can be answered
        log.info("role %s instead of %s", role, before)
        await self._retire(old)

    async def _prepare(self, role: Role, identity: Identity) -> tuple[RolePlan, Worker]:
        """The new role's worker, beside the old one, which serves on whatever happens here."""
        try:
            plan = self._plans[role](self._config)
            return plan, await plan.make_worker(self._parts, identity, self._send)
        except ConfigError as error:
            raise BadRequest(f"role {role} cannot be had here: {error.message}", "role") from None
        except XpydError:
            raise
        except Exception as error:
            log.exception("role %s could not be started", role)
            reason = f"role {role} could not be started ({type(error).__name__}); see the log"
            raise Unavailable(reason) from None

    async def _drain(self, drain_s: float) -> None:
        deadline = time.monotonic() + drain_s
        while left := self.worker.num_open():
            if time.monotonic() >= deadline:
                log.info("%d requests or leases are left after %.1f s: they move", left, drain_s)
                return
            await asyncio.sleep(DRAIN_POLL_S)

    async def _retire(self, old: Worker) -> None:
        try:
            await old.close()
        except Exception:
            log.exception("the worker of the old role did not end cleanly")
        for name, read in old.counters().items():
            self._retired[name] += read()  # type: ignore[assignment]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._switching = None
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # whoever asked has it, or has gone
