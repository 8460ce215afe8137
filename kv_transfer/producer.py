"""The producer's face: offers a prompt's blocks as they fill, and hands each back exactly once.

Runs in the event loop. It knows block ids and epochs, not what is in a block; who may read what is
decided in `lease.py`, how bytes move in `transport/`. From `extend` on the blocks belong to the
lease table, until it calls `free` with them: because the consumer finished, because the request was
released, or because the lease expired.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.cluster_key import ClusterKey
from common.errors import LayoutMismatch, LeaseExpired, PeerLost, TransferError
from common.rpc import Listener
from common.wire import Decoder, KVHandle, Message
from kv_transfer import messages as m
from kv_transfer.counters import as_object
from kv_transfer.identity import KVIdentity, mismatch
from kv_transfer.lease import Ended, LeaseTable, Offer, State
from kv_transfer.poller import Poller
from kv_transfer.publisher import Batch, FilledBlocks, Publisher
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Transport

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0


@dataclass(slots=True)
class ProducerCounters:
    """Plain numbers for `/metrics`; they only grow."""

    offered: int = 0  # offers
    released: int = 0  # offers read to the end by their consumer
    expired: int = 0
    aborted: int = 0
    bytes_released: int = 0  # of the blocks in released offers
    failures: Counter[str] = field(default_factory=Counter)  # publishing failed, by error code
    refused: Counter[str] = field(default_factory=Counter)  # claims refused, by error code


class KVProducer:
    def __init__(
        self,
        info: KVIdentity,
        region: KVRegion,
        transport: Transport,
        *,
        free: Callable[[list[int]], None],
        epochs: Callable[[list[int]], Sequence[int]],
        lease_s: float = 10.0,
        key: ClusterKey | None = None,
    ) -> None:
        """`free` gives one hold per id back; `epochs` reads the blocks' epochs now. Both are called
        in the event loop and must not block. `key`: consumers must hold it, too."""
        self._info = info
        self._transport = transport
        self._region = region
        self._free = free
        self._epochs = epochs
        self._key = key
        self._leases = LeaseTable(lease_s)
        self._readers: dict[str, bytes] = {}  # claim: the peer (ZeroMQ identity) that opened it
        self._described = b""
        self._listener: Listener | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._wake_reaper = asyncio.Event()
        self._poller: Poller | None = None
        self._publisher: Publisher | None = None
        self._logged_at = -math.inf
        self.counters = ProducerCounters()

    async def start(self, bind: str, announce_host: str = "") -> None:
        """Listen at `tcp://host:port`; handles name `announce_host` instead, if it is given. Raises
        ConfigError, or zmq.ZMQError if the port is taken."""
        self._described = self._transport.describe()
        self._listener = Listener(
            bind,
            Decoder(m.ToProducer, m.MAX_KV_MESSAGE_BYTES),
            self._on_message,
            max_bytes=m.MAX_KV_MESSAGE_BYTES,
            key=self._key,
            announce_host=announce_host,
        )
        if self._transport.publishes or self._transport.checksums:
            self._publisher = Publisher(
                self._transport, self._region, self._admit, self._publish_failed
            )
        if self._transport.polls:
            self._poller = Poller(self._transport, lambda: self._leases.num_claims > 0)
        self._reaper = asyncio.get_running_loop().create_task(self._reap())

    @property
    def endpoint(self) -> str:
        """`tcp://host:port` of the side channel."""
        assert self._listener is not None, "not started"
        return self._listener.endpoint

    # --- what prefill calls ------------------------------------------------------------------

    def offer(self, request_id: str, num_tokens: int, num_blocks: int) -> KVHandle:
        """Announce the KV of a prompt. It ends with the last `extend`'s lease, or by `release`."""
        offer = self._leases.offer(request_id, num_blocks, time.monotonic())
        self.counters.offered += 1
        return KVHandle(
            offer_id=offer.offer_id,
            instance_id=self._info.instance_id,
            incarnation=self._info.incarnation,
            side_channel=self.endpoint,
            connector=self._transport.name,
            kv_fingerprint=self._info.kv_fingerprint,
            num_tokens=num_tokens,
            num_blocks=num_blocks,
        )

    def extend(self, filled: FilledBlocks, first_token: int | None = None) -> None:
        """Take over the holds of these blocks. With the last of them: what prefill sampled."""
        batch = Batch(self._leases.of_request(filled.request_id), filled, first_token)
        if self._publisher is None:
            self._admit(batch)
        else:
            self._publisher.put(batch)

    def release(self, request_id: str) -> None:
        """Forget the request's offer, in any state; unknown requests are ignored."""
        offer = self._leases.of_request(request_id)
        if offer is not None:
            self._abort(offer, TransferError("the producer took its offer back"))

    def ledger(self) -> list[dict[str, Any]]:
        """One row per live offer, for `/debug/kv`."""
        now = time.monotonic()
        return [
            {
                "offer": offer.name,
                "request_id": offer.request_id,
                "state": offer.state.value,
                "blocks": len(offer.block_ids),
                "age_s": round(now - offer.since, 3),
                "lease_s": None if math.isinf(offer.deadline) else round(offer.deadline - now, 3),
                "peer": offer.peer,
            }
            for offer in self._leases.offers()
        ]

    @property
    def num_leases(self) -> int:
        """Offers that hold blocks."""
        return sum(1 for offer in self._leases.offers() if offer.block_ids)

    @property
    def num_blocks_held(self) -> int:
        published = sum(len(offer.block_ids) for offer in self._leases.offers())
        return published + (0 if self._publisher is None else self._publisher.num_blocks)

    @property
    def num_transfers(self) -> int:
        """Offers that a consumer is reading or waiting for."""
        return self._leases.num_claims

    @property
    def num_bad_messages(self) -> int:
        return 0 if self._listener is None else self._listener.refused + self._listener.failed

    def snapshot(self) -> dict[str, Any]:
        """Counters and gauges as one flat object."""
        return as_object(self.counters) | {
            "leases": self.num_leases,
            "blocks_held": self.num_blocks_held,
            "transfers_pending": self.num_transfers,
            "bad_messages": self.num_bad_messages,
            "denied_peers": 0 if self._listener is None else self._listener.denied,
        }

    async def close(self) -> None:
        """End all offers and hand their blocks back. Idempotent."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        if self._poller is not None:
            await self._poller.close()
        if self._publisher is not None:
            await self._publisher.close()
        for offer in self._leases.offers():
            self.release(offer.request_id)
        if self._listener is not None:
            await self._listener.close()
        await asyncio.to_thread(self._transport.close)

    # --- what consumers say ------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: Any) -> None:
        match message:
            case m.Open():
                self._open(peer, message)
            case m.Renew(claims=claims):
                self._renew(peer, claims)
            case m.Finish(claim=claim):
                self._finish(peer, claim)
            case m.Cancel(claim=claim) if self._is_reader(peer, claim):
                self._give_back(self._leases.cancel(claim))

    def _open(self, peer: bytes, message: m.Open) -> None:
        now = time.monotonic()
        try:
            self._check(message)
            offer = self._leases.claim(message.offer_id, message.claim, message.consumer, now)
        except TransferError as error:
            self._refuse(peer, message.claim, error)
            return
        self._readers[message.claim] = peer
        self._send(
            peer,
            m.Opened(
                message.claim,
                self._leases.lease_s,
                self._region.num_blocks,
                self._region.block_bytes,
                self._described,
            ),
        )
        self._wake_reaper.set()
        self._show(offer, 0)

    def _check(self, message: m.Open) -> None:
        """Raise unless the consumer means us, as we are. Nothing has been read by then."""
        if message.version != m.KV_WIRE_VERSION:
            raise LayoutMismatch(f"side channel version {message.version}, not {m.KV_WIRE_VERSION}")
        if not hmac.compare_digest(message.incarnation.encode(), self._info.incarnation.encode()):
            raise PeerLost("the producer has restarted since it made this offer")
        self._leases.find(message.offer_id)  # who has no handle learns nothing about us
        if message.connector != self._transport.name:
            raise LayoutMismatch(f"connector is {self._transport.name} here")
        differing = mismatch(self._info.kv_fingerprint, message.kv_fingerprint)
        if differing:
            raise LayoutMismatch(f"KV layouts do not match: {differing}")

    def _renew(self, peer: bytes, claims: Sequence[str]) -> None:
        now = time.monotonic()
        for claim in claims:
            try:
                self._own(peer, claim)
                self._leases.renew(claim, now)
            except TransferError as error:
                self._refuse(peer, claim, error)
        self._send(peer, m.Renewed())

    def _finish(self, peer: bytes, claim: str) -> None:
        """Answer with the epochs as they are while the blocks are still held; then let them go."""
        now = time.monotonic()
        try:
            self._own(peer, claim)
            epochs = self._epochs(list(self._leases.check(claim, now).block_ids))
            ended = self._leases.finish(claim, now)
        except TransferError as error:
            self._refuse(peer, claim, error)
            return
        self._send(peer, m.Finished(claim, tuple(epochs)))
        self._give_back(ended)

    def _is_reader(self, peer: bytes, claim: str) -> bool:
        return self._readers.get(claim) == peer

    def _own(self, peer: bytes, claim: str) -> None:
        if not self._is_reader(peer, claim):
            raise TransferError("no such claim")

    # --- what follows ------------------------------------------------------------------------

    def _admit(self, batch: Batch) -> None:
        """The blocks join their offer, or go back if it has ended."""
        filled, offer = batch.filled, batch.offer
        if offer is None or not offer.is_live:
            self._free_blocks(filled.block_ids)
            return
        if not _continues(offer, batch):
            log.error("blocks do not continue their offer request_id=%s", filled.request_id)
            self._free_blocks(filled.block_ids)
            self._abort(offer, TransferError("the producer lost track of its offer"))
            return
        hashes = filled.hashes if self._transport.uses_hashes else ()
        self._leases.extend(
            offer,
            filled.block_ids,
            filled.epochs,
            hashes,
            batch.checksums,
            batch.first_token,
            time.monotonic(),
        )
        self._wake_reaper.set()
        self._show(offer, filled.first)

    def _publish_failed(self, batch: Batch, error: TransferError) -> None:
        self._free_blocks(batch.filled.block_ids)
        if batch.offer is not None:
            self._abort(batch.offer, error)
        self.counters.failures[error.code] += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.warning("KV blocks were not published: %s", error.message)

    def _show(self, offer: Offer, start: int) -> None:
        """Tell the reader, if there is one, of the blocks from `start` on."""
        if offer.claim is None:
            return
        is_complete = offer.state is State.COMPLETE
        end = len(offer.block_ids)
        while start < end or is_complete:
            stop = min(end, start + m.MAX_BLOCKS_PER_READY)
            is_last = is_complete and stop == end
            ready = m.Ready(
                offer.claim,
                start,
                tuple(offer.block_ids[start:stop]),
                tuple(offer.epochs[start:stop]),
                tuple(offer.hashes[start:stop]),
                is_last,
                offer.first_token if is_last else None,
                tuple(offer.checksums[start:stop]),
            )
            self._send(self._readers[offer.claim], ready)
            start = stop
            if is_last:
                break
        if self._poller is not None:
            self._poller.blocks_shown()

    def _abort(self, offer: Offer, reason: TransferError) -> None:
        self._give_back(self._leases.abort(offer), reason)

    def _give_back(self, ended: Ended | None, reason: TransferError | None = None) -> None:
        """The one place where blocks of an offer leave. `reason` is told to its reader."""
        if ended is None:
            return
        if ended.claim is not None:
            peer = self._readers.pop(ended.claim)
            if reason is not None:
                self._send(peer, m.Refused(ended.claim, reason.code, reason.message))
        self._free_blocks(ended.block_ids)
        match ended.state:
            case State.RELEASED:
                self.counters.released += 1
                self.counters.bytes_released += len(ended.block_ids) * self._region.block_bytes
            case State.EXPIRED:
                self.counters.expired += 1
            case _:
                self.counters.aborted += 1

    def _free_blocks(self, block_ids: Sequence[int]) -> None:
        if block_ids:
            self._free(list(block_ids))

    def _refuse(self, peer: bytes, claim: str, error: TransferError) -> None:
        self.counters.refused[error.code] += 1
        self._send(peer, m.Refused(claim, error.code, error.message))

    def _send(self, peer: bytes, message: Message) -> None:
        assert self._listener is not None
        self._listener.send(peer, message)  # a peer that has gone loses its lease

    # --- background --------------------------------------------------------------------------

    async def _reap(self) -> None:
        """Expire leases when they are due; asleep while there are none."""
        while True:
            for ended in self._leases.expire(time.monotonic()):
                log.warning("lease expired request_id=%s", ended.request_id)
                try:
                    self._give_back(ended, LeaseExpired("the lease has expired"))
                except Exception:
                    log.exception("blocks not handed back request_id=%s", ended.request_id)
            deadline = self._leases.next_deadline()
            if math.isinf(deadline):
                self._wake_reaper.clear()
                await self._wake_reaper.wait()
            else:  # a deadline that comes up meanwhile is a whole lease away
                await asyncio.sleep(max(deadline - time.monotonic(), 0.001))


def _continues(offer: Offer, batch: Batch) -> bool:
    """Are these the offer's next blocks, and the last of them if and only if they say so?"""
    filled = batch.filled
    end = filled.first + len(filled.block_ids)
    is_last = batch.first_token is not None
    return (
        filled.first == len(offer.block_ids)
        and filled.is_last == is_last
        and (end == offer.num_blocks if is_last else end <= offer.num_blocks)
    )
