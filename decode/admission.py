"""Who may come in: blocks for an incoming load, first come first served.

A load takes its whole prompt's blocks at once or waits; leading blocks that the prefix cache
already holds are shared instead of loaded.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from common.engine.driver import EngineDriver
from common.engine.engine import Engine
from common.errors import DeadlineExceeded

RETRY_S = 0.25  # a safety net: `space_freed` normally comes first


@dataclass(frozen=True, slots=True)
class Loan:
    """Blocks in token order: the first `num_cached` hold their KV already, the rest is reserved."""

    block_ids: list[int]
    num_cached: int


def take(engine: Engine, token_ids: tuple[int, ...], salt: str, num_blocks: int) -> Loan | None:
    """Runs in the engine's thread. None: not enough free blocks now."""
    cached = engine.match_prefix(token_ids, salt)
    reserved = engine.reserve(num_blocks - len(cached))
    if reserved is None:
        engine.free(cached)
        return None
    return Loan(cached + reserved, len(cached))


class Admission:
    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self._turn = asyncio.Lock()  # asyncio's lock is fair: waiters enter in order
        self._freed = asyncio.Event()
        self.num_waiting = 0

    def space_freed(self) -> None:
        self._freed.set()

    async def enter(
        self,
        token_ids: tuple[int, ...],
        salt: str,
        num_blocks: int,
        deadline: float,
        unneeded: asyncio.Future[Any],
    ) -> Loan | None:
        """The caller owns the loan's blocks; None if `unneeded` was done before there were any.

        Raises DeadlineExceeded at `deadline` (monotonic).
        """
        self.num_waiting += 1
        left = max(0.0, deadline - time.monotonic())
        entering = asyncio.ensure_future(self._in_turn(token_ids, salt, num_blocks))
        try:
            await asyncio.wait(
                {entering, unneeded}, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            self._withdraw(entering)
            raise
        finally:
            self.num_waiting -= 1
        if entering.done():
            return entering.result()
        self._withdraw(entering)
        if unneeded.done():
            return None
        raise DeadlineExceeded("no KV blocks became free in time")

    def _withdraw(self, entering: asyncio.Future[Loan]) -> None:
        if not entering.cancel():  # it has ended: with blocks, perhaps
            self._give_back(entering)

    async def _in_turn(self, token_ids: tuple[int, ...], salt: str, num_blocks: int) -> Loan:
        async with self._turn:
            return await self._take(token_ids, salt, num_blocks)

    async def _take(self, token_ids: tuple[int, ...], salt: str, num_blocks: int) -> Loan:
        while True:
            self._freed.clear()
            asked = asyncio.ensure_future(
                self._driver.call(lambda engine: take(engine, token_ids, salt, num_blocks))
            )
            try:
                loan = await asyncio.shield(asked)
            except asyncio.CancelledError:
                asked.add_done_callback(self._give_back)
                raise
            if loan is not None:
                return loan
            try:
                await asyncio.wait_for(self._freed.wait(), RETRY_S)
            except asyncio.TimeoutError:
                continue

    def _give_back(self, asked: asyncio.Future[Loan] | asyncio.Future[Loan | None]) -> None:
        if not asked.cancelled() and asked.exception() is None and (loan := asked.result()):
            self._driver.post(lambda engine: engine.free(loan.block_ids))
