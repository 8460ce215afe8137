"""Copies blocks in threads of its own.

Threads, because a copy of megabytes must not stop the event loop; they sleep when there is nothing
to do. A small copy is made at once: it takes less than the way to a thread and back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from common.errors import TransferError
from kv_transfer.claim import Copy
from kv_transfer.reader import Reader
from kv_transfer.transport.base import Gate

log = logging.getLogger(__name__)

NUM_THREADS = 4
T = TypeVar("T")


class Copier:
    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kv-copy")
        # Of its own: a copy waits for it, so it must not queue behind copies.
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="kv-check")

    def copy(self, reader: Reader, copy: Copy, gate: Gate) -> asyncio.Future[None]:
        """Copy the producer's blocks into ours, as `Reader.read`."""
        if reader.is_brief(copy):
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            try:
                _copy(reader, copy, gate, self._checker)
            except TransferError as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            return done
        return self.run(lambda: _copy(reader, copy, gate, self._checker))

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Something else that blocks: connecting."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._checker.shutdown(wait=False, cancel_futures=True)


def _copy(reader: Reader, copy: Copy, gate: Gate, checker: ThreadPoolExecutor) -> None:
    try:
        reader.read(copy, gate, checker)
    except (TransferError, CancelledError):
        raise
    except Exception as error:  # the top of this thread
        log.exception("KV copy failed")
        raise TransferError(f"the KV copy failed: {type(error).__name__}") from None
