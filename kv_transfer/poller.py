"""Lets consumers' one-sided reads advance on the producer, for transports that need its hand.

Often after blocks were shown, ever more seldom while readers only wait, asleep without readers. It
goes on for a while after the last claim has ended: a read that its reader is about to stop cannot
end without us.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from kv_transfer.transport.base import Transport

PAUSE_MIN_S = 0.0002
PAUSE_MAX_S = 0.005
LINGER_S = 3.0  # longer than a consumer waits for a stopped read (copier.SETTLE_S)
LINGER_PAUSE_S = 0.02


class Poller:
    def __init__(self, transport: Transport, has_readers: Callable[[], bool]) -> None:
        self._transport = transport
        self._has_readers = has_readers
        self._news = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def blocks_shown(self) -> None:
        """A reader will read now."""
        self._news.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s, linger_until = PAUSE_MIN_S, -math.inf
        while True:
            has_readers = self._has_readers()
            if has_readers:
                linger_until = time.monotonic() + LINGER_S
            elif time.monotonic() >= linger_until:
                self._news.clear()
                await self._news.wait()
            if self._news.is_set():
                self._news.clear()
                pause_s = PAUSE_MIN_S
            self._transport.poll()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S if has_readers else LINGER_PAUSE_S)
