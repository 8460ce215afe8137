"""Asks instances to take another role, and waits for what they say. Who has which role, the
instances' own `Welcome` tells; this knows only who has been asked and not answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from common.errors import BadRequest, DeadlineExceeded, InstanceLost, Unavailable, from_wire
from common.wire import Role, RoleSet, SetRole

DEFAULT_DRAIN_S = 30.0
MARGIN_S = 30.0  # for what a switch takes beside its drain


class RoleSwitches:
    """`send(instance_id, message)` says whether the message went out."""

    def __init__(self, send: Callable[[str, msgspec.Struct], bool]) -> None:
        self._send = send
        self._asked: dict[str, asyncio.Future[None]] = {}

    @property
    def in_progress(self) -> frozenset[str]:
        """Instances that have been asked and have not answered."""
        return frozenset(self._asked)

    async def ask(self, instance_id: str, role: Role, drain_s: float | None = None) -> None:
        """Returns when the instance serves `role`. Raises XpydError if it does not."""
        if instance_id in self._asked:
            raise Unavailable("this instance is changing its role already")
        answer = self._asked[instance_id] = asyncio.get_running_loop().create_future()
        wait_s = (DEFAULT_DRAIN_S if drain_s is None else drain_s) + MARGIN_S
        try:
            if not self._send(instance_id, SetRole(role, drain_s)):
                raise InstanceLost("the instance does not take messages")
            await asyncio.wait_for(answer, wait_s)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"the instance did not answer within {wait_s:.0f} s; GET /instances shows its role"
            ) from None
        finally:
            del self._asked[instance_id]

    def answered(self, instance_id: str, message: RoleSet) -> None:
        answer = self._asked.get(instance_id)
        if answer is None or answer.done():
            return
        if message.code:
            error = from_wire(message.code, message.message)
            answer.set_exception(
                BadRequest(error.message, "role") if isinstance(error, BadRequest) else error
            )
        else:
            answer.set_result(None)

    def lost(self, instance_id: str) -> None:
        """Nobody will answer over the link that was asked on."""
        answer = self._asked.get(instance_id)
        if answer is not None and not answer.done():
            answer.set_exception(InstanceLost("the instance was lost before it answered"))
