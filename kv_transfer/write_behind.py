"""Makes blocks readable elsewhere after they were offered, for a connector that is only a fallback.

In order, one batch at a time, in a thread. A block stays held until it has been written: holds
that its offer gives back meanwhile wait here. A disk that cannot keep up costs what is not written,
never a hand-over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

from common.errors import TransferError
from kv_transfer.batch import FilledBlocks
from kv_transfer.transport.base import Transport

log = logging.getLogger(__name__)


class WriteBehind:
    def __init__(
        self, transport: Transport, max_blocks: int, free: Callable[[list[int]], None]
    ) -> None:
        """`max_blocks`: that may wait to be written; what comes beyond is not written."""
        self._transport = transport
        self._max_blocks = max_blocks
        self._free = free
        self._batches: deque[FilledBlocks] = deque()
        self._waiting: Counter[int] = Counter()  # block: batches it is in
        self._kept: Counter[int] = Counter()  # block: holds to be given back once it is written
        self._has_work = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self.num_skipped = 0  # blocks

    def put(self, filled: FilledBlocks) -> None:
        """Somebody holds the blocks, and gives them back through `given_back`."""
        if self._waiting.total() + len(filled.block_ids) > self._max_blocks:
            self.num_skipped += len(filled.block_ids)
            return
        self._batches.append(filled)
        self._waiting.update(filled.block_ids)
        self._has_work.set()

    def given_back(self, block_ids: Sequence[int]) -> list[int]:
        """Those that may go now; the others follow."""
        later = [block for block in block_ids if block in self._waiting]
        self._kept.update(later)
        return [block for block in block_ids if block not in self._waiting]

    @property
    def num_kept(self) -> int:
        return self._kept.total()

    async def close(self) -> None:
        """Leaves out what is not written yet, after the batch being written."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while self._batches:
            self._done()

    async def _run(self) -> None:
        while True:
            if not self._batches:
                self._has_work.clear()
                await self._has_work.wait()
            filled = self._batches[0]
            job = asyncio.ensure_future(
                asyncio.to_thread(self._transport.publish, filled.block_ids, filled.hashes)
            )
            try:
                await asyncio.shield(job)
            except TransferError as error:  # the transport has counted it
                log.debug("blocks were not written: %s", error.message)
            except asyncio.CancelledError:
                await asyncio.wait({job})
                raise
            except Exception:  # the top of the thread's work
                log.exception("writing failed request_id=%s", filled.request_id)
            self._done()

    def _done(self) -> None:
        """With the first batch."""
        blocks = self._batches.popleft().block_ids
        self._waiting.subtract(blocks)
        over = [block for block in dict.fromkeys(blocks) if not self._waiting[block]]
        for block in over:
            del self._waiting[block]
        free = [block for block in over for _ in range(self._kept.pop(block, 0))]
        if free:
            self._free(free)
