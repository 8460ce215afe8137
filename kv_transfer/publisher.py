"""What takes time before blocks are offered: making them readable elsewhere, and their checksums.

In order, one batch at a time, in a thread. While a batch is in here its blocks are held for us and
belong to nobody else: they go on to the lease table, or back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from common.errors import TransferError
from kv_transfer.batch import Batch, FilledBlocks
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Transport

log = logging.getLogger(__name__)


class Publisher:
    def __init__(
        self,
        transport: Transport,
        region: KVRegion,
        on_published: Callable[[Batch], None],
        on_failed: Callable[[Batch, TransferError], None],
    ) -> None:
        """Each batch goes to exactly one of the two, in the event loop."""
        self._transport = transport
        self._region = region
        self._on_published = on_published
        self._on_failed = on_failed
        self._batches: deque[Batch] = deque()
        self._has_work = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def put(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._has_work.set()

    @property
    def num_blocks(self) -> int:
        return sum(len(batch.filled.block_ids) for batch in self._batches)

    async def close(self) -> None:
        """Fail what is left, after the batch being published: a thread is reading its blocks."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while self._batches:
            self._on_failed(self._batches.popleft(), TransferError("the producer is closing"))

    async def _run(self) -> None:
        while True:
            if not self._batches:
                self._has_work.clear()
                await self._has_work.wait()
            filled = self._batches[0].filled
            job = asyncio.ensure_future(asyncio.to_thread(self._publish, filled))
            try:
                checksums = await asyncio.shield(job)
            except TransferError as error:
                self._on_failed(self._batches.popleft(), error)
            except asyncio.CancelledError:
                await asyncio.wait({job})
                raise
            except Exception as error:  # the top of the thread's work
                log.exception("publishing failed request_id=%s", filled.request_id)
                reason = TransferError(f"publishing failed: {type(error).__name__}")
                self._on_failed(self._batches.popleft(), reason)
            else:
                self._on_published(replace(self._batches.popleft(), checksums=checksums))

    def _publish(self, filled: FilledBlocks) -> tuple[int, ...]:
        if self._transport.publishes:
            self._transport.publish(filled.block_ids, filled.hashes)
        return self._region.checksums(filled.block_ids) if self._transport.checksums else ()
