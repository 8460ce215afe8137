"""How a stand-in takes another role: as an instance does, less the worker behind it."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from msgspec.structs import replace

from common.wire import RoleSet, SetRole, Welcome

if TYPE_CHECKING:
    from benchmarks.standin_instance import StandinInstance


async def take_role(instance: StandinInstance, peer: bytes, message: SetRole) -> None:
    """Drain, be another incarnation, tell every proxy, answer the one that asked."""
    drain_s = 30.0 if message.drain_s is None else message.drain_s
    deadline = time.monotonic() + drain_s
    instance.is_draining = True
    instance.tell_all(instance.load())
    while instance.sequences or instance.tasks or instance.offers:
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(0.01)
    instance.drop_all()
    instance.is_draining = False
    instance.info = replace(instance.info, role=message.role, incarnation=uuid.uuid4().hex)
    instance.tell_all(Welcome(instance.info))
    instance.tell_all(instance.load())
    instance.send(peer, RoleSet(message.role))
