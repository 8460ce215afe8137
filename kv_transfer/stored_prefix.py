"""Loads the start of a prompt from shared storage instead of computing it.

    names ─▶ how many of them are stored ─▶ reserve ─▶ load ─▶ into the prefix cache

What is loaded becomes part of this instance's prefix cache; the scheduler finds it there like
anything else. Nothing here can fail a request: whatever goes wrong, the prompt is computed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from common.engine.driver import EngineDriver
from common.errors import Unavailable

log = logging.getLogger(__name__)

PATIENCE_S = 5.0  # for a disk that does not answer


class BlockStore(Protocol):
    """Blocks by the hash of the prefix that they end. Both methods block, in any thread."""

    def num_stored(self, hashes: list[str]) -> int:
        """How many of the leading ones seem to be there."""
        ...

    def load(self, block_ids: list[int], hashes: list[str]) -> int:
        """Fill the blocks; how many of the leading ones are right now."""
        ...


class StoredPrefix:
    def __init__(self, driver: EngineDriver, store: BlockStore) -> None:
        self._driver = driver
        self._store = store
        self._running: set[asyncio.Task[None]] = set()
        self.num_blocks = 0  # loaded so far

    async def load(self, token_ids: tuple[int, ...], salt: str) -> None:
        """Returns when the prompt should be queued, whatever has been found."""
        task = asyncio.get_running_loop().create_task(self._load(token_ids, salt))
        self._running.add(task)  # it goes on if the request is cancelled: it owns blocks
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task}, timeout=PATIENCE_S)

    async def close(self) -> None:
        """Waits for what is being loaded, but not for a disk that hangs."""
        if self._running:
            await asyncio.wait(self._running, timeout=PATIENCE_S)

    async def _load(self, token_ids: tuple[int, ...], salt: str) -> None:
        try:
            await self._fill(token_ids, salt)
        except Unavailable:
            pass  # the engine has stopped
        except Exception:  # the top of this task
            log.exception("stored blocks were not loaded")

    async def _fill(self, token_ids: tuple[int, ...], salt: str) -> None:
        driver, store = self._driver, self._store
        first, digests = await driver.call(lambda engine: engine.unknown_prefix(token_ids, salt))
        names = [digest.hex() for digest in digests[first:]]
        num_stored = await asyncio.to_thread(store.num_stored, names) if names else 0
        if not num_stored:
            return
        blocks = await driver.call(lambda engine: engine.reserve(num_stored, "stored prefix"))
        if blocks is None:
            return
        num_loaded = 0
        try:
            num_loaded = await asyncio.to_thread(store.load, blocks, names[:num_stored])
        finally:
            driver.post(
                lambda engine: engine.keep_prefix(token_ids, salt, first, blocks, num_loaded)
            )
        self.num_blocks += num_loaded
