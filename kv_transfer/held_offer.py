"""Drives one claim: does what `claim.py` decides, and tells it what has happened.

Runs in the event loop. The copying and connecting themselves run in threads (copier.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from common.errors import TransferError
from common.wire import Message
from kv_transfer.block_check import ChecksumMismatch
from kv_transfer.claim import Action, Claim, Connect, Copy, End, Landed, Phase, Send, StopCopy
from kv_transfer.copier import Copier
from kv_transfer.counters import ConsumerCounters
from kv_transfer.lease import NAME_LEN
from kv_transfer.messages import Opened, Read
from kv_transfer.reader import Reader
from kv_transfer.report import Spent, TransferReport
from kv_transfer.token_map import Target, num_blocks
from kv_transfer.transport.base import Gate


class Channel(Protocol):
    """The connection to the claim's producer."""

    def send(self, message: Message) -> None: ...

    def reader(self, opened: Opened) -> asyncio.Future[Reader]:
        """Its memory; opened by the first who asks, and again after a failure."""
        ...


class HeldOffer:
    """An offer that this consumer has claimed, or is about to."""

    def __init__(
        self,
        claim: Claim,
        channel: Channel,
        copier: Copier,
        block_size: int,
        counters: ConsumerCounters,
        on_quarantine: Callable[[int], None],
        on_landed: Callable[[Sequence[int]], None],
    ) -> None:
        """`on_quarantine(num_blocks)`: so many more than before; negative when they landed."""
        self._claim = claim
        self._channel = channel
        self._copier = copier
        self._block_size = block_size
        self._counters = counters
        self._on_quarantine = on_quarantine
        self._on_landed = on_landed
        self._reader: Reader | None = None
        self._since = time.monotonic()
        self._gate = Gate()
        self._spent = Spent()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Future[int] = self._loop.create_future()
        self._ended: asyncio.Future[End] = self._loop.create_future()

    def row(self, now: float) -> dict[str, Any]:
        """For `/debug/kv`."""
        handle = self._claim.handle
        return {
            "offer": handle.offer_id[:NAME_LEN],
            "producer": handle.instance_id,
            "phase": self._claim.phase.value,
            "blocks": handle.num_blocks,
            "named": len(self._claim.block_ids),
            "age_s": round(now - self._since, 3),
        }

    # --- what its owner does -----------------------------------------------------------------

    def start(self) -> None:
        self._do(self._claim.start())

    async def read(self, into: Sequence[int], skip_blocks: int) -> int:
        """The copying half of `KVConsumer.fetch`; once."""
        first = await self.arrive(into, skip_blocks)
        await self.confirmed()
        return first

    async def arrive(self, into: Sequence[int], skip_blocks: int) -> int:
        """Returns the first token when all blocks are here; whether they were right and in time is
        known when `confirmed` returns. Nothing is written to `into` any more by then."""
        first_token = skip_blocks * self._block_size
        expected = num_blocks(self._claim.handle.num_tokens, self._block_size) - skip_blocks
        if skip_blocks < 0 or len(into) != expected:
            raise TransferError(
                f"{len(into)} local blocks for {expected} to load, {skip_blocks} skipped"
            )
        self._do(self._claim.read(Target(tuple(into), first_token, self._block_size)))
        either: set[asyncio.Future[Any]] = {self._arrived, self._ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._arrived.done():
            raise self.failure()
        self._spent.ended_at = time.monotonic()
        return self._arrived.result()

    async def confirmed(self) -> None:
        """The producer held the blocks until they had all been read. Raises if not."""
        await asyncio.wait({self._ended})
        if self._ended.result().error is not None:
            raise self.failure()

    @property
    def ended(self) -> asyncio.Future[End]:
        """Done when the claim has ended; before `read` that can only be a failure."""
        return self._ended

    def failure(self) -> TransferError:
        """Why it has ended."""
        error = self._ended.result().error
        assert error is not None, "it has not failed"
        return error

    @property
    def report(self) -> TransferReport:
        """What it has cost, once `arrive` has returned."""
        return self._spent.report()

    async def leave(self) -> None:
        """Cancel what has not ended, and wait until no byte lands any more: a few milliseconds, and
        never longer than `claim.SETTLE_S`. Raises if that could not be reached."""
        if self._ended.done():
            return
        self._do(self._claim.cancel(time.monotonic()))
        was_cancelled = False
        while not self._ended.done():
            try:
                await asyncio.wait({self._ended})
            except asyncio.CancelledError:
                was_cancelled = True
        error = self._ended.result().error
        if error is not None and error.quarantine:
            raise error
        if was_cancelled:
            raise asyncio.CancelledError

    # --- events ------------------------------------------------------------------------------

    def on_message(self, message: Any) -> None:
        now = time.monotonic()
        was_complete = self._claim.is_complete
        actions = self._claim.on_message(message, now)
        if self._claim.is_complete and not was_complete:
            self._spent.computed_at = now
        self._do(actions)

    def fail(self, error: TransferError) -> None:
        self._do(self._claim.fail(error, time.monotonic()))

    def reopen(self) -> None:
        """The channel is another connection from now on."""
        self._do(self._claim.reopen(time.monotonic()))

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._do(self._claim.tick(time.monotonic()))

    def _connected(self, opening: asyncio.Future[Reader]) -> None:
        error = _failure(opening)
        if error is not None:
            self._do(self._claim.not_connected(error, time.monotonic()))
            return
        self._reader = opening.result()
        self._do(self._claim.connected(self._reader.writes_through_gate))

    def _copied(self, job: asyncio.Future[None], num_blocks: int, began: float) -> None:
        error = _failure(job)
        self._spent.copy_s += time.monotonic() - began
        if error is None:
            num_bytes = num_blocks * self._claim.remote.block_bytes
            self._counters.bytes_read += num_bytes
            self._spent.num_bytes += num_bytes
            self._spent.num_blocks += num_blocks
            self._do(self._claim.copied())
            return
        self._counters.checksum_mismatches += isinstance(error, ChecksumMismatch)
        self._do(self._claim.not_copied(error, time.monotonic()))

    # --- actions -----------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(message=message):
                    self._channel.send(message)
                case Connect(opened=opened):
                    self._channel.reader(opened).add_done_callback(self._connected)
                case Copy():
                    self._start_copy(action)
                case StopCopy():
                    self._gate.close()
                case End():
                    self._end(action)
                case Landed(block_ids=block_ids):
                    self._on_quarantine(-len(block_ids))
                    self._on_landed(block_ids)
        if self._claim.phase is Phase.FINISHING and not self._arrived.done():
            assert self._claim.first_token is not None
            self._arrived.set_result(self._claim.first_token)
        self._set_timer()

    def _start_copy(self, copy: Copy) -> None:
        assert self._reader is not None
        self._gate = Gate(self._ask)
        num_blocks, began = len(copy.remote), time.monotonic()
        job = self._copier.copy(self._reader, copy, self._gate)
        job.add_done_callback(lambda done: self._copied(done, num_blocks, began))

    def _ask(self, request: bytes, block_ids: Sequence[int]) -> None:
        """In the copying thread."""
        message = Read(self._claim.token, request, tuple(block_ids))
        try:
            self._loop.call_soon_threadsafe(self._channel.send, message)
        except RuntimeError:  # the loop has closed
            raise TransferError("the consumer is closing") from None

    def _end(self, end: End) -> None:
        if end.error is not None and end.error.quarantine:
            self._on_quarantine(len(end.error.quarantine))
        self._ended.set_result(end)

    def _set_timer(self) -> None:
        deadline = self._claim.next_deadline()
        if deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, deadline
        if not math.isinf(deadline):
            left_s = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._tick)


def _failure(job: asyncio.Future[Any]) -> TransferError | None:
    if job.cancelled():
        return TransferError("the consumer is closing")
    error = job.exception()
    if error is None or isinstance(error, TransferError):
        return error
    return TransferError(f"the KV load failed: {type(error).__name__}")
