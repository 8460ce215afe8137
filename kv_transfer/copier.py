"""Copies blocks in threads of its own, and knows when their last byte has landed.

Threads, because a copy of megabytes must not stop the event loop; they sleep when there is nothing
to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.errors import CorruptBlock, TransferError
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Gate, Peer

log = logging.getLogger(__name__)

SETTLE_S = 2.0  # how long a stopped copy may take to come to rest before its blocks are quarantined
NUM_THREADS = 4


class Copier:
    def __init__(self, region: KVRegion, on_landed: Callable[[list[int]], None] | None) -> None:
        """`on_landed(blocks)`, in the event loop: blocks that were quarantined are safe again."""
        self._region = region
        self._on_landed = on_landed
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kv-copy")
        self.num_quarantined = 0

    async def copy(
        self,
        peer: Peer,
        remote: Sequence[int],
        local: Sequence[int],
        hashes: Sequence[str],
        checksums: Sequence[int],
        failed: asyncio.Future[TransferError],
    ) -> None:
        """Copy the peer's blocks `remote` into ours; stop as soon as `failed` has a result. With
        `checksums`, raise ChecksumMismatch unless what has arrived has them.

        Whether it returns, raises or is cancelled: afterwards no byte lands in `local`. If that
        cannot be reached in time it raises a TransferError with `quarantine`, even when it was
        cancelled.
        """
        gate = Gate()
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._threads, _read, peer, remote, local, hashes, gate)
        try:
            both: set[asyncio.Future[Any]] = {job, failed}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gate.close()
            if not job.done():
                await self._settle(job, peer, local)
        if failed.done():
            raise failed.result()
        job.result()
        if checksums:
            await loop.run_in_executor(
                self._threads, _verify, self._region, tuple(local), tuple(checksums)
            )

    async def _settle(self, job: asyncio.Future[None], peer: Peer, local: Sequence[int]) -> None:
        was_cancelled = False
        end = time.monotonic() + SETTLE_S
        while not job.done() and (left_s := end - time.monotonic()) > 0:
            try:
                await asyncio.wait({job}, timeout=left_s)
            except asyncio.CancelledError:
                was_cancelled = True
        if not job.done():
            job.add_done_callback(lambda done: self._landed(done, peer, local))
            if not peer.writes_through_gate:
                self.num_quarantined += len(local)
                error = TransferError(
                    "the KV load could not be stopped: its blocks are quarantined"
                )
                error.quarantine = tuple(local)
                raise error
        if was_cancelled:
            raise asyncio.CancelledError

    def _landed(self, job: asyncio.Future[None], peer: Peer, local: Sequence[int]) -> None:
        if not job.cancelled():
            job.exception()  # it has been reported as the reason why the copy was stopped
        if not peer.writes_through_gate:
            self.num_quarantined -= len(local)
            if self._on_landed is not None:
                self._on_landed(list(local))

    def run(self, work: Callable[[], Peer]) -> asyncio.Future[Peer]:
        """Something else that blocks: connecting."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class ChecksumMismatch(CorruptBlock):
    """What arrived is not what was sent."""


def _verify(region: KVRegion, local: tuple[int, ...], checksums: tuple[int, ...]) -> None:
    if region.checksums(local) != checksums:
        raise ChecksumMismatch("a block was damaged on its way")


def _read(
    peer: Peer, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
) -> None:
    try:
        peer.read(remote, local, hashes, gate)
    except TransferError:
        raise
    except Exception as error:  # the top of this thread
        log.exception("KV copy failed")
        raise TransferError(f"the KV copy failed: {type(error).__name__}") from None
