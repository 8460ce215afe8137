"""The consumer's face: fetches the blocks that a handle stands for into local blocks.

    first_token = await consumer.fetch(handle, into=block_ids, skip_blocks=3, deadline=monotonic() +
    10)

Copies while prefill is still running. After the last copy the producer confirms that the lease
stood and the blocks still had the epochs they had when they were named; only then is the first
token returned. Runs in the event loop; copying and connecting run in threads (copier.py).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import zmq

from common.cluster_key import ClusterKey
from common.errors import LayoutMismatch, TransferError
from common.fingerprint import block_size_of
from common.wire import KVHandle
from kv_transfer import messages as m
from kv_transfer.claim import Claim
from kv_transfer.copier import Copier
from kv_transfer.counters import ConsumerCounters, as_object
from kv_transfer.handles import HandleKey
from kv_transfer.held_offer import HeldOffer
from kv_transfer.identity import KVIdentity
from kv_transfer.negotiate import check_handle
from kv_transfer.producer_link import ProducerLink
from kv_transfer.reader import DirectReader, Reader, StagedReader
from kv_transfer.region import KVRegion
from kv_transfer.token_map import num_blocks
from kv_transfer.transport.base import Transport

IDLE_S = 30.0  # a producer that is not read for so long is let go, and with it its memory


class KVConsumer:
    def __init__(
        self,
        info: KVIdentity,
        region: KVRegion,
        transport: Transport,
        *,
        silence_s: float = 3.0,
        on_landed: Callable[[list[int]], None] | None = None,
        staging: Callable[[KVRegion, KVIdentity], Transport] | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        """`staging` makes a transport that reads blocks of another size into a region of its own;
        None: such producers are refused. `silence_s`: a producer that answers nothing for so long
        is lost. `on_landed(blocks)`: blocks that an error named in `quarantine` may be reused from
        now on."""
        self._info = info
        self._region = region
        self._transport = transport
        self._silence_s = silence_s
        self._staging = staging
        self._key = key
        self._handle_key = HandleKey(key)
        self._block_size = block_size_of(info.kv_fingerprint) or 1
        self._copier = Copier()
        self._on_landed = on_landed
        self._num_quarantined = 0
        self._links: dict[tuple[str, str], ProducerLink] = {}  # by side channel and incarnation
        self._closing: set[asyncio.Task[None]] = set()
        self.counters = ConsumerCounters()

    async def fetch(
        self, handle: KVHandle, into: Sequence[int], skip_blocks: int, deadline: float
    ) -> int:
        """Copy the handle's tokens, without those of our first `skip_blocks` blocks, into `into`;
        return the first token.

        `into` stays the caller's. Raises TransferError or one of its kinds. When this has returned,
        raised or been cancelled, nothing is written to `into` any more, except to the blocks that
        the error names in `quarantine`. `deadline` is monotonic time.
        """
        async with self.hold(handle, deadline) as held:
            _check_target(into, self._region.num_blocks)
            return await held.read(into, skip_blocks)

    @asynccontextmanager
    async def hold(self, handle: KVHandle, deadline: float) -> AsyncIterator[HeldOffer]:
        """Claim the handle and keep the producer's blocks there until they are read or the context
        is left: for a caller that must wait for local blocks before it can fetch. Raises as
        `fetch`."""
        claim = self._claim(handle, deadline)
        started = time.monotonic()
        link = self._link(handle)
        held = HeldOffer(
            claim,
            link,
            self._copier,
            self._block_size,
            self.counters,
            self._quarantine,
            self._landed,
        )
        link.open(claim.token, held)
        try:
            try:
                yield held
            finally:
                await held.leave()
        except TransferError as error:
            self.counters.failures[error.code] += 1
            raise
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise
        finally:
            self.counters.transfer_s += time.monotonic() - started
            self._leave(claim, link)

    def num_blocks(self, num_tokens: int) -> int:
        """Of ours, for so many tokens."""
        return num_blocks(num_tokens, self._block_size)

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def num_transfers(self) -> int:
        return sum(len(link.claims) for link in self._links.values())

    def ledger(self) -> list[dict[str, Any]]:
        """One row per offer that is being read or waited for, for `/debug/kv`."""
        now = time.monotonic()
        return [held.row(now) for link in self._links.values() for held in link.claims.values()]

    def snapshot(self) -> dict[str, Any]:
        """Counters and gauges as one flat object."""
        return as_object(self.counters) | {
            "transfers_pending": self.num_transfers,
            "blocks_quarantined": self._num_quarantined,
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

    def _claim(self, handle: KVHandle, deadline: float) -> Claim:
        """Raise unless blocks can be exchanged; nothing has been sent by then."""
        block_bytes = self._region.block_bytes
        remote = check_handle(
            handle, self._info, self._transport.name, block_bytes, self._handle_key
        )
        token = secrets.token_hex(16)
        return Claim(handle, remote, self._info, deadline, self.counters, token)

    def _link(self, handle: KVHandle) -> ProducerLink:
        key = (handle.side_channel, handle.incarnation)
        link = self._links.get(key)
        if link is not None and link.is_lost:
            self._drop(key, link)
            link = None
        if link is None:
            try:
                link = ProducerLink(
                    handle.side_channel,
                    self._silence_s,
                    lambda opened: self._copier.run(lambda: self._connect(handle, opened)),
                    self._key,
                )
            except zmq.ZMQError:
                raise TransferError("the handle names no side channel") from None
            self._links[key] = link
        return link

    def _connect(self, handle: KVHandle, opened: m.Opened) -> Reader:
        """In a thread. Raises TransferError kinds."""
        size = block_size_of(handle.kv_fingerprint)
        finds_by_name = self._transport.uses_hashes  # which include the producer's fingerprint
        is_same = handle.kv_fingerprint == self._info.kv_fingerprint
        if size == self._block_size and (is_same or not finds_by_name):
            peer = self._transport.connect(opened.region, opened.num_blocks)
            return DirectReader(peer, self._region)
        make = self._staging
        if make is None:
            raise LayoutMismatch(
                f"KV layouts do not match: differing block_size ({self._block_size}, {size})"
            )
        theirs = replace(
            self._info,
            incarnation=f"{self._info.incarnation}-{secrets.token_hex(4)}",
            kv_fingerprint=handle.kv_fingerprint,
        )
        return StagedReader(
            self._region,
            size,
            lambda region: make(region, theirs),
            opened.region,
            opened.num_blocks,
        )

    def _quarantine(self, more: int) -> None:
        self._num_quarantined += more

    def _landed(self, block_ids: Sequence[int]) -> None:
        if self._on_landed is not None:
            self._on_landed(list(block_ids))

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


def _check_target(into: Sequence[int], pool_size: int) -> None:
    if len(set(into)) != len(into) or not all(0 <= block < pool_size for block in into):
        raise ValueError("local blocks must be distinct and inside the pool")
