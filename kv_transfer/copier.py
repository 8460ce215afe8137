"""Copies blocks in threads of its own, and compares what has come.

Threads, because a copy of megabytes must not stop the event loop; they sleep when there is nothing
to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from common.errors import TransferError
from kv_transfer.block_check import BlockCheck
from kv_transfer.claim import Copy
from kv_transfer.region import KVRegion
from kv_transfer.token_map import whole_blocks
from kv_transfer.transport.base import Gate, Peer

log = logging.getLogger(__name__)

NUM_THREADS = 4
T = TypeVar("T")


class Copier:
    def __init__(self, region: KVRegion) -> None:
        self._region = region
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kv-copy")
        # Of its own: a copy waits for it, so it must not queue behind copies.
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="kv-check")

    def copy(self, peer: Peer, copy: Copy, gate: Gate) -> asyncio.Future[None]:
        """Copy the peer's blocks into ours. When this is done nothing is written any more; it ends
        with ChecksumMismatch unless what has arrived has the copy's checksums, if it has any."""
        local = whole_blocks(copy.pieces)
        check = BlockCheck(self._region, local, copy.checksums, self._checker)
        gate.watch(check.landed)
        return self.run(lambda: _copy(peer, copy, local, gate, check))

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Something else that blocks: connecting."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._checker.shutdown(wait=False, cancel_futures=True)


def _copy(peer: Peer, copy: Copy, local: Sequence[int], gate: Gate, check: BlockCheck) -> None:
    try:
        peer.read(copy.remote, local, copy.hashes, gate)
        check.finish()
    except (TransferError, CancelledError):
        raise
    except Exception as error:  # the top of this thread
        log.exception("KV copy failed")
        raise TransferError(f"the KV copy failed: {type(error).__name__}") from None
