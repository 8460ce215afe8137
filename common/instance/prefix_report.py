"""Tells proxies which prefix blocks this instance holds: all at once when asked, then the changes.

Changes of up to `PAUSE_S` go into one message. Every message has the next number of its proxy, and
one goes out each `BEAT_S` even if nothing changed: so a lost message is noticed, by the gap, soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

from common.engine.driver import EngineDriver
from common.engine.interface import StepResult
from common.engine.prefix import short_hash
from common.engine.prefix_log import BlocksHeld, BlocksStored, PrefixEvent
from common.instance.outbox import Send
from common.wire import MAX_PREFIX_HASHES, Prefixes

PAUSE_S = 0.1
BEAT_S = 1.0
MIN_REPORT_S = 0.5  # between two full reports to one proxy


class PrefixReports:
    """`always`: somebody else reads the engine's prefix reports, too; they are never stopped."""

    def __init__(
        self,
        driver: EngineDriver,
        send: Send,
        incarnation: str,
        *,
        always: bool = False,
        beat_s: float = BEAT_S,
        min_report_s: float = MIN_REPORT_S,
        max_hashes: int = MAX_PREFIX_HASHES,
    ) -> None:
        self._driver = driver
        self._send = send
        self.incarnation = incarnation  # changes with the role
        self._always = always
        self._beat_s = beat_s
        self._min_report_s = min_report_s
        self._max_hashes = max_hashes
        self._next_seq: dict[bytes, int] = {}  # by proxy, of those who have had a full report
        self._waiting: set[bytes] = set()  # for a full report
        self._reported_at: dict[bytes, float] = {}
        self._changes: dict[int, bool] = {}  # since the last message: hash, is it held now?
        self._has_news = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())
        driver.listeners.append(self._on_step)

    def watch(self, peer: bytes) -> None:
        """A proxy asks. Asking often is not answered often."""
        if time.monotonic() - self._reported_at.get(peer, -math.inf) < self._min_report_s:
            return
        self._reported_at[peer] = time.monotonic()
        self._waiting.add(peer)
        self._driver.post(lambda engine: engine.report_prefixes())

    def forget(self, peer: bytes) -> None:
        self._waiting.discard(peer)
        self._reported_at.pop(peer, None)
        self._next_seq.pop(peer, None)
        if not (self._next_seq or self._waiting):
            self._changes.clear()
            if not self._always:
                self._driver.post(lambda engine: engine.stop_prefix_reports())

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    # --- inside ------------------------------------------------------------------------------

    def _on_step(self, result: StepResult) -> None:
        for event in result.prefixes:
            if isinstance(event, BlocksHeld):
                self._report(event)
            elif self._next_seq:
                self._note(event)

    def _note(self, event: PrefixEvent) -> None:
        is_held = isinstance(event, BlocksStored)
        for digest in event.digests:
            block = short_hash(digest)
            self._changes.pop(block, None)
            self._changes[block] = is_held
        self._has_news.set()

    def _report(self, event: BlocksHeld) -> None:
        """All that is held, to those who wait for it. What changed before is in it."""
        hashes = [short_hash(digest) for digest in event.digests]
        for peer in self._waiting:
            self._next_seq[peer] = 0
            for start in range(0, len(hashes) or 1, self._max_hashes):
                part = tuple(hashes[start : start + self._max_hashes])
                self._tell(peer, part, (), is_reset=start == 0)
        self._waiting.clear()
        self._has_news.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), self._beat_s)
            self._has_news.clear()
            self._flush()
            await asyncio.sleep(PAUSE_S)

    def _flush(self) -> None:
        changes, self._changes = list(self._changes.items()), {}
        for start in range(0, len(changes) or 1, self._max_hashes):
            part = changes[start : start + self._max_hashes]
            added = tuple(block for block, is_held in part if is_held)
            removed = tuple(block for block, is_held in part if not is_held)
            for peer in self._next_seq:
                self._tell(peer, added, removed)

    def _tell(
        self,
        peer: bytes,
        added: tuple[int, ...],
        removed: tuple[int, ...],
        *,
        is_reset: bool = False,
    ) -> None:
        """A message that cannot be sent leaves a gap in the numbers, and the proxy asks again."""
        seq = self._next_seq[peer]
        self._next_seq[peer] = seq + 1
        self._send(peer, Prefixes(self.incarnation, seq, added, removed, is_reset))
