"""The consumer's face: fetches the blocks that a handle stands for into local blocks.

    first_token = await consumer.fetch(handle, into=block_ids, skip_blocks=3, deadline=monotonic() +
    10)

Copies while prefill is still running. After the last copy the producer confirms that the lease
stood and the blocks still had the epochs they had when they were named; only then is the first
token returned. Runs in the event loop; copying and connecting run in threads (copier.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import zmq

from common.cluster_key import ClusterKey
from common.errors import LayoutMismatch, TransferError
from common.wire import KVHandle
from kv_transfer import messages as m
from kv_transfer.claim import Claim
from kv_transfer.copier import ChecksumMismatch, Copier
from kv_transfer.counters import as_object
from kv_transfer.identity import KVIdentity, mismatch
from kv_transfer.producer_link import ProducerLink
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Peer, Transport

IDLE_S = 30.0  # a producer that is not read for so long is let go, and with it its memory


@dataclass(slots=True)
class ConsumerCounters:
    """Plain numbers for `/metrics`; they only grow."""

    fetched: int = 0
    bytes_read: int = 0
    transfer_s: float = 0.0  # sum over fetches, from claim to first token
    cancelled: int = 0
    checksum_mismatches: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by error code


class KVConsumer:
    def __init__(
        self,
        info: KVIdentity,
        region: KVRegion,
        transport: Transport,
        *,
        silence_s: float = 3.0,
        on_landed: Callable[[list[int]], None] | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        """`silence_s`: a producer that answers nothing for so long is lost. `on_landed(blocks)`:
        blocks that an error named in `quarantine` may be reused from now on."""
        self._info = info
        self._region = region
        self._transport = transport
        self._silence_s = silence_s
        self._key = key
        self._copier = Copier(region, on_landed)
        self._links: dict[tuple[str, str], ProducerLink] = {}  # by side channel and incarnation
        self._closing: set[asyncio.Task[None]] = set()
        self.counters = ConsumerCounters()

    async def fetch(
        self, handle: KVHandle, into: Sequence[int], skip_blocks: int, deadline: float
    ) -> int:
        """Copy the handle's blocks from number `skip_blocks` on into `into`; return the first
        token.

        `into` stays the caller's. Raises TransferError or one of its kinds. When this has returned,
        raised or been cancelled, nothing is written to `into` any more, except to the blocks that
        the error names in `quarantine`. `deadline` is monotonic time.
        """
        async with self.hold(handle, deadline) as held:
            return await held.read(into, skip_blocks)

    @asynccontextmanager
    async def hold(self, handle: KVHandle, deadline: float) -> AsyncIterator[HeldOffer]:
        """Claim the handle and keep the producer's blocks there until they are read or the context
        is left: for a caller that must wait for local blocks before it can fetch. Raises as
        `fetch`."""
        self._check(handle)
        started = time.monotonic()
        claim = Claim(handle, self._region.block_bytes)
        link = self._open(claim)
        timer = claim.fail_at(deadline)
        try:
            yield HeldOffer(claim, link, self._region, self._transport, self._copier, self.counters)
            self.counters.fetched += claim.finished is not None
        except TransferError as error:
            self.counters.failures[error.code] += 1
            self.counters.checksum_mismatches += isinstance(error, ChecksumMismatch)
            raise
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise
        finally:
            timer.cancel()
            self.counters.transfer_s += time.monotonic() - started
            if claim.finished is None:
                link.send(m.Cancel(claim.token))
            self._leave(claim, link)

    @property
    def num_transfers(self) -> int:
        return sum(len(link.claims) for link in self._links.values())

    def snapshot(self) -> dict[str, Any]:
        """Counters and gauges as one flat object."""
        return as_object(self.counters) | {
            "transfers_pending": self.num_transfers,
            "blocks_quarantined": self._copier.num_quarantined,
            "peers": len(self._links),
            "bad_messages": sum(link.num_bad_messages for link in self._links.values()),
        }

    async def close(self) -> None:
        """Fail what is still being fetched, let go of all producers. Idempotent."""
        for key in list(self._links):
            self._drop(key, self._links[key])
        await asyncio.gather(*self._closing)
        self._copier.close()
        await asyncio.to_thread(self._transport.close)

    # --- inside ------------------------------------------------------------------------------

    def _check(self, handle: KVHandle) -> None:
        """Raise unless blocks can be exchanged; nothing has been sent by then."""
        if handle.connector != self._transport.name:
            raise LayoutMismatch(
                f"connector is {handle.connector} there, {self._transport.name} here"
            )
        differing = mismatch(self._info.kv_fingerprint, handle.kv_fingerprint)
        if differing:
            raise LayoutMismatch(f"KV layouts do not match: {differing}")
        if not handle.side_channel.startswith("tcp://"):
            raise TransferError("the handle names no side channel")

    def _open(self, claim: Claim) -> ProducerLink:
        handle = claim.handle
        key = (handle.side_channel, handle.incarnation)
        link = self._links.get(key)
        if link is None or link.is_lost:
            if link is not None:
                self._drop(key, link)
            try:
                link = ProducerLink(handle.side_channel, self._silence_s, self._key)
            except zmq.ZMQError:
                raise TransferError("the handle names no side channel") from None
            self._links[key] = link
        message = m.Open(
            claim=claim.token,
            offer_id=handle.offer_id,
            incarnation=handle.incarnation,
            connector=handle.connector,
            kv_fingerprint=handle.kv_fingerprint,
            consumer=self._info.instance_id,
        )
        link.open(claim, message)
        return link

    def _leave(self, claim: Claim, link: ProducerLink) -> None:
        del link.claims[claim.token]
        key = (claim.handle.side_channel, claim.handle.incarnation)
        if link.claims or self._links.get(key) is not link:
            return
        if link.is_lost:
            self._drop(key, link)
        else:
            link.when_idle(IDLE_S, lambda: self._drop(key, link))

    def _drop(self, key: tuple[str, str], link: ProducerLink) -> None:
        if self._links.get(key) is not link:
            return
        del self._links[key]
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class HeldOffer:
    """An offer that this consumer has claimed."""

    def __init__(
        self,
        claim: Claim,
        link: ProducerLink,
        region: KVRegion,
        transport: Transport,
        copier: Copier,
        counters: ConsumerCounters,
    ) -> None:
        self._claim = claim
        self._link = link
        self._region = region
        self._transport = transport
        self._copier = copier
        self._counters = counters

    async def read(self, into: Sequence[int], skip_blocks: int) -> int:
        """The copying half of `KVConsumer.fetch`; once."""
        claim = self._claim
        _check_target(claim.handle, into, skip_blocks, self._region.num_blocks)
        await claim.until(lambda: claim.opened is not None)
        peer = await claim.unless_failed(self._link.peer(self._connect))
        done = skip_blocks
        while not (claim.is_complete and done >= claim.handle.num_blocks):
            await claim.more_than(done)
            ready = slice(done, len(claim.block_ids))
            remote, hashes = claim.block_ids[ready], claim.hashes[ready]
            if remote:
                local = into[done - skip_blocks :][: len(remote)]
                checksums = claim.checksums[ready]
                await self._copier.copy(peer, remote, local, hashes, checksums, claim.failed)
                self._counters.bytes_read += len(remote) * self._region.block_bytes
                done += len(remote)
        self._link.send(m.Finish(claim.token))
        await claim.until(lambda: claim.finished is not None)
        return claim.verified()

    def _connect(self) -> asyncio.Future[Peer]:
        opened = self._claim.opened
        assert opened is not None
        return self._copier.run(lambda: self._transport.connect(opened.region, opened.num_blocks))


def _check_target(handle: KVHandle, into: Sequence[int], skip_blocks: int, num_blocks: int) -> None:
    if skip_blocks < 0 or len(into) != handle.num_blocks - skip_blocks:
        raise TransferError(
            f"{len(into)} local blocks for {handle.num_blocks} offered, {skip_blocks} skipped"
        )
    if len(set(into)) != len(into) or not all(0 <= block < num_blocks for block in into):
        raise ValueError("local blocks must be distinct and inside the pool")
