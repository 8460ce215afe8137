"""One fetch as the consumer sees it: what the producer has said so far. Sends and copies nothing.

A claim fails at most once, from whichever comes first: the producer's refusal, a message that does
not fit, the producer's silence, the deadline.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from common.errors import CorruptBlock, LayoutMismatch, TransferError, XpydError, from_wire
from common.wire import KVHandle
from kv_transfer import messages as m

T = TypeVar("T")


class Claim:
    def __init__(self, handle: KVHandle, block_bytes: int) -> None:
        self.token = secrets.token_hex(16)
        self.handle = handle
        self.opened: m.Opened | None = None
        self.finished: m.Finished | None = None
        self.first_token: int | None = None
        self.block_ids: list[int] = []  # on the producer, as far as named
        self.epochs: list[int] = []
        self.hashes: list[str] = []  # empty unless the transport uses them
        self.checksums: list[int] = []  # empty unless the producer makes them
        self.failed: asyncio.Future[TransferError] = asyncio.get_running_loop().create_future()
        self._block_bytes = block_bytes
        self._news = asyncio.Event()

    # --- what the producer says --------------------------------------------------------------

    def on_message(self, message: Any) -> None:
        if self.finished is not None:
            return  # for example the refusal of a heartbeat that crossed it
        try:
            match message:
                case m.Opened():
                    self._on_opened(message)
                case m.Ready():
                    self._on_ready(message)
                case m.Finished():
                    self.finished = message
                case m.Refused(code=code, message=text):
                    self.fail(_as_transfer_error(from_wire(code, text)))
        except TransferError as error:
            self.fail(error)
        self._news.set()

    def _on_opened(self, opened: m.Opened) -> None:
        if opened.block_bytes != self._block_bytes:
            raise LayoutMismatch(
                f"block_bytes is {opened.block_bytes} there, {self._block_bytes} here"
            )
        self.opened = opened

    def _on_ready(self, ready: m.Ready) -> None:
        """Nothing in the message is believed before it is compared with what is known."""
        end = ready.first + len(ready.block_ids)
        if self.opened is None or ready.first != len(self.block_ids) or self.is_complete:
            raise TransferError("the producer's blocks came out of order")
        if len(ready.epochs) != len(ready.block_ids) or end > self.handle.num_blocks:
            raise TransferError("the producer's block list is malformed")
        if not all(
            len(known) + len(more) in (0, end)  # for every block so far, or for none
            for known, more in ((self.hashes, ready.hashes), (self.checksums, ready.checksums))
        ):
            raise TransferError("the producer's block list is malformed")
        if any(block >= self.opened.num_blocks for block in ready.block_ids):
            raise TransferError("the producer named a block outside its pool")
        is_whole = end == self.handle.num_blocks and ready.first_token is not None
        if ready.is_last and not is_whole:
            raise TransferError("the producer ended its offer early")
        self.block_ids += ready.block_ids
        self.epochs += ready.epochs
        self.hashes += ready.hashes
        self.checksums += ready.checksums
        if ready.is_last:
            self.first_token = ready.first_token

    @property
    def is_complete(self) -> bool:
        """All blocks have been named."""
        return self.first_token is not None

    # --- failing and waiting -----------------------------------------------------------------

    def fail(self, error: TransferError) -> None:
        """Nothing happens after the end, which is the first failure or the confirmation."""
        if not self.failed.done() and self.finished is None:
            self.failed.set_result(error)
        self._news.set()

    def fail_at(self, deadline: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(
            max(0.0, deadline - time.monotonic()),
            self.fail,
            TransferError("the KV load did not end before its deadline"),
        )

    @property
    def failure(self) -> TransferError | None:
        return self.failed.result() if self.failed.done() else None

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Raises the claim's failure as soon as there is one."""
        while self.failure is None and not is_true():
            self._news.clear()
            await self._news.wait()
        if self.failure is not None:
            raise self.failure

    async def more_than(self, num_blocks: int) -> None:
        """Until more blocks than these have been named, or all."""
        await self.until(lambda: self.is_complete or len(self.block_ids) > num_blocks)

    async def unless_failed(self, job: asyncio.Future[T]) -> T:
        """The job's result, or the claim's failure if that comes first; the job runs on."""
        both: set[asyncio.Future[Any]] = {job, self.failed}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self.failure is not None:
            raise self.failure
        return job.result()

    def verified(self) -> int:
        """The first token, if the producer's confirmation says that what was read is what was
        named.
        """
        assert self.finished is not None and self.first_token is not None
        if list(self.finished.epochs) != self.epochs:
            raise CorruptBlock("blocks changed hands while they were read")
        return self.first_token


def _as_transfer_error(error: XpydError) -> TransferError:
    return error if isinstance(error, TransferError) else TransferError(error.message)
