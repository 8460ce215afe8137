"""Tell a proxy's registry that this instance exists, every second, and when it leaves."""

from __future__ import annotations

import asyncio
import contextlib

from common.cluster_key import ClusterKey
from common.rpc import Link
from common.wire import (
    MAX_REGISTRY_MESSAGE_BYTES,
    Decoder,
    Deregister,
    InstanceInfo,
    Register,
    ToProxy,
    to_be_found,
)

INTERVAL_S = 1.0


class Registration:
    """`registry`: `host:port`. Repeating the message is what finds a registry that was away."""

    def __init__(self, registry: str, info: InstanceInfo, key: ClusterKey | None = None) -> None:
        self._info = to_be_found(info)
        self._link = Link(
            f"tcp://{registry}",
            Decoder(ToProxy, MAX_REGISTRY_MESSAGE_BYTES),
            lambda message: None,  # the registry does not answer
            max_bytes=MAX_REGISTRY_MESSAGE_BYTES,
            key=key,
        )
        self._task = asyncio.create_task(self._repeat())

    async def _repeat(self) -> None:
        while True:
            self._link.send(Register(self._info))
            await asyncio.sleep(INTERVAL_S)

    def announce(self, info: InstanceInfo) -> None:
        """The instance is another from now on: it has a new role."""
        self._info = to_be_found(info)
        self._link.send(Register(self._info))

    async def close(self) -> None:
        """Leave: say so, once."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._link.send(Deregister(self._info.instance_id, self._info.incarnation))
        await self._link.close()
