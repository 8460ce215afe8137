"""Watches the fleet's load; says, or also does, what `advice.py` makes of it.

One flip at a time, through the instance's own drain. One controller per fleet: of several workers
the first has it; of several proxies give it to one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from common.errors import XpydError
from proxy.advice import SHORT, Advice, FleetSample, InstanceSample, Side, Targets, advise
from proxy.membership import Member, State
from proxy.relay import Fleet

log = logging.getLogger(__name__)

Mode = Literal["off", "suggest", "act"]
Latencies = Callable[[], tuple[float | None, float | None]]  # TTFT and ITL of late, seconds

SAMPLE_S = 1.0
DRAIN_S = 30.0  # for what an instance runs before it changes sides; what is left is moved


class Controller:
    """`await run()` until cancelled; `describe()` is for `/status`."""

    def __init__(
        self,
        fleet: Fleet,
        mode: Mode,
        targets: Targets = Targets(),  # noqa: B008 (frozen)
        latencies: Latencies = lambda: (None, None),
        *,
        sample_s: float = SAMPLE_S,
    ) -> None:
        self._fleet = fleet
        self._mode = mode
        self._targets = targets
        self._latencies = latencies
        self._sample_s = sample_s
        self._window: deque[FleetSample] = deque()
        self._changed_at: float | None = None
        self._advice = Advice("nothing has been seen yet")
        self.num_flips = 0

    async def run(self) -> None:
        while True:
            try:
                await self._look(time.monotonic())
            except Exception:
                log.exception("the controller failed to look at the fleet")
            await asyncio.sleep(self._sample_s)

    def describe(self) -> dict[str, Any]:
        advice = self._advice
        return {
            "mode": self._mode,
            "suggests": f"{advice.prefill}P{advice.decode}D",
            "reason": advice.reason,
            "flip": None
            if advice.flip is None
            else {"instance": advice.flip[0], "role": advice.flip[1]},
            "pressure": {
                "prefill": round(advice.pressure[0], 3),
                "decode": round(advice.pressure[1], 3),
            },
            "targets": {
                "queue_s": self._targets.queue_s,
                "kv_usage": self._targets.kv_usage,
                "ttft_s": self._targets.ttft_s,
                "itl_s": self._targets.itl_s,
            },
            "flips": self.num_flips,
        }

    async def _look(self, now: float) -> None:
        self._window.append(sample_of(self._fleet, self._latencies, now))
        while now - self._window[0].at > 2 * self._targets.window_s:
            self._window.popleft()
        before, self._advice = (
            self._advice,
            advise(self._window, self._targets, now, self._changed_at),
        )
        advice = self._advice
        if advice.reason == SHORT and before.reason != SHORT:
            log.info("%s; no change of roles would help", SHORT)
        if advice.flip is None:
            return
        if before.flip != advice.flip:
            wanted = f"{advice.prefill}P{advice.decode}D"
            log.info("%s would serve this load better: %s", wanted, advice.reason)
        if self._mode == "act":
            await self._flip(*advice.flip)

    async def _flip(self, instance_id: str, side: Side) -> None:
        try:
            await self._fleet.roles.ask(instance_id, side, DRAIN_S)
        except XpydError as error:
            log.warning("instance_id=%s does not become %s: %s", instance_id, side, error.message)
        else:
            self.num_flips += 1
            log.info("instance_id=%s is %s now", instance_id, side)
        self._changed_at = time.monotonic()
        self._window.clear()


def sample_of(fleet: Fleet, latencies: Latencies, now: float) -> FleetSample:
    model = fleet.served_model()
    members = [m for _, m in sorted(fleet.membership.members.items()) if m.info.model == model]
    ttft_s, itl_s = latencies()
    return FleetSample(
        now,
        tuple(_sample(fleet, member) for member in members if member.state is not State.DEAD),
        fleet.accounts.computed_tokens,
        ttft_s,
        itl_s,
    )


def _sample(fleet: Fleet, member: Member) -> InstanceSample:
    view = fleet.accounts.view(member)
    return InstanceSample(
        view.instance_id,
        view.role,
        member.state is State.READY and not member.is_draining,
        view.queued_tokens,
        view.num_requests,
        member.load.num_waiting if member.load else 0,
        1.0 - view.free_blocks / max(1, view.total_blocks),
    )
