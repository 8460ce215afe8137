"""What a producer does with each event, as a plain state machine: events in, actions out.

    prefill     offer, admit, drop, release  ┐                 ┌ Send     to a consumer
    consumers   received                     ├▶  protocol  ──▶ ┼ Serve    blocks to one that asks
    the clock   tick                         ┘                 └ Free     blocks go back, once

Who may read which blocks is decided in `lease.py`; here is what is said about it. No sockets, no
tasks, no clock: `now` is any monotonic time in seconds, a peer is whatever the link calls it. The
actions are to be done in order, and at once: between an event and its actions nothing may happen.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import HandleRefused, LayoutMismatch, LeaseExpired, PeerLost, TransferError
from common.wire import KVHandle, Message
from kv_transfer import messages as m
from kv_transfer.batch import Batch
from kv_transfer.counters import ProducerCounters
from kv_transfer.handles import HandleKey
from kv_transfer.identity import KVIdentity
from kv_transfer.lease import Ended, LeaseTable, Offer, State
from kv_transfer.negotiate import check_layouts
from kv_transfer.transcript import digest


@dataclass(frozen=True, slots=True)
class Send:
    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Free:
    """The blocks are nobody's here any more. `request_id` is for the log."""

    block_ids: tuple[int, ...]
    request_id: str
    has_expired: bool = False


@dataclass(frozen=True, slots=True)
class Serve:
    """Send what a consumer asked for; no blocks: tell it that it gets none."""

    request: bytes
    block_ids: tuple[int, ...]


Action = Send | Free | Serve


@dataclass(frozen=True, slots=True)
class Described:
    """What consumers are told of this producer's memory."""

    connector: str
    num_blocks: int
    block_bytes: int
    region: bytes  # the transport's own description
    uses_hashes: bool  # it finds blocks by hash


class ProducerProtocol:
    def __init__(
        self,
        info: KVIdentity,
        described: Described,
        side_channel: str,
        lease_s: float,
        epochs: Callable[[list[int]], Sequence[int]],
        keys: HandleKey,
        random_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        """`epochs` reads the blocks' epochs as they are now."""
        self._info = info
        self._described = described
        self._side_channel = side_channel
        self._epochs = epochs
        self.keys = keys
        self._readers: dict[str, tuple[bytes, int]] = {}  # claim: who opened it last, `Open.number`
        self.leases = LeaseTable(lease_s, random_hex)
        self.counters = ProducerCounters()

    def next_deadline(self) -> float:
        """When `tick` has something to do, if nothing else happens; infinity if never."""
        return self.leases.next_deadline()

    # --- what prefill does -------------------------------------------------------------------

    def offer(
        self, request_id: str, num_tokens: int, num_blocks: int, content: str, now: float
    ) -> KVHandle:
        """Announce the KV of a prompt. Raises BadRequest while the request has a live offer.

        content:  what the KV is of (handles.content_of)
        """
        offer = self.leases.offer(request_id, num_blocks, now)
        self.counters.offered += 1
        handle = KVHandle(
            offer_id=offer.offer_id,
            instance_id=self._info.instance_id,
            incarnation=self._info.incarnation,
            side_channel=self._side_channel,
            connector=self._described.connector,
            kv_fingerprint=self._info.kv_fingerprint,
            num_tokens=num_tokens,
            num_blocks=num_blocks,
            content=content,
        )
        return self.keys.sign(handle)

    def admit(self, batch: Batch, now: float) -> list[Action]:
        """Blocks that can be read now join their offer, or go back if it has ended."""
        filled, offer = batch.filled, batch.offer
        if offer is None or not offer.is_live:
            return _free(filled.block_ids, filled.request_id)
        if not _continues(offer, batch):
            lost = TransferError("the producer lost track of its offer")
            return self.drop(batch, lost)
        self.leases.extend(
            offer,
            filled.block_ids,
            filled.epochs,
            filled.hashes if self._described.uses_hashes else (),
            batch.checksums,
            batch.first_token,
            now,
        )
        return self._show(offer, filled.first)

    def drop(self, batch: Batch, error: TransferError) -> list[Action]:
        """Blocks that cannot be offered go back, and with them their offer."""
        filled, offer = batch.filled, batch.offer
        actions = _free(filled.block_ids, filled.request_id)
        if offer is not None:
            actions += self._give_back(self.leases.abort(offer), error)
        return actions

    def release(self, request_id: str) -> list[Action]:
        """Forget the request's offer, in any state; unknown requests are ignored."""
        offer = self.leases.of_request(request_id)
        if offer is None:
            return []
        reason = TransferError("the producer took its offer back")
        return self._give_back(self.leases.abort(offer), reason)

    def release_all(self) -> list[Action]:
        """At the end."""
        return [
            action for offer in self.leases.offers() for action in self.release(offer.request_id)
        ]

    # --- what consumers say ------------------------------------------------------------------

    def received(self, peer: bytes, message: Any, now: float) -> list[Action]:
        match message:
            case m.Open():
                return self._open(peer, message, now)
            case m.Renew(claims=claims):
                return self._renew(peer, claims, now)
            case m.Read():
                return self._read(peer, message, now)
            case m.Finish(claim=claim):
                return self._finish(peer, claim, now)
            case m.Cancel(claim=claim) if self._is_reader(peer, claim):
                return self._give_back(self.leases.cancel(claim))
        return []

    def tick(self, now: float) -> list[Action]:
        """Expire leases when they are due."""
        reason = LeaseExpired("the lease has expired")
        return [
            action for ended in self.leases.expire(now) for action in self._give_back(ended, reason)
        ]

    # --- inside ------------------------------------------------------------------------------

    def _open(self, peer: bytes, message: m.Open, now: float) -> list[Action]:
        claim, offer_id = message.claim, message.handle.offer_id
        read = self.leases.of_claim(claim)
        goes_on = read is not None and read.offer_id == offer_id
        if goes_on and self._readers[claim][1] >= message.number:
            if self._is_reader(peer, claim):
                return []  # the message came twice
            return [self._refuse(peer, claim, HandleRefused("another link has the claim"))]
        try:
            self._check(message)
            if goes_on:  # on another link
                self.leases.renew(claim, now)
                offer = self.leases.reading(claim, now)
            else:
                offer = self.leases.claim(offer_id, claim, message.consumer, now)
        except TransferError as error:
            return [self._refuse(peer, claim, error)]
        self._readers[claim] = peer, message.number
        return [Send(peer, self._opened(claim)), *self._show(offer, 0)]

    def _opened(self, claim: str) -> m.Opened:
        described = self._described
        return m.Opened(
            claim,
            self.leases.lease_s,
            described.num_blocks,
            described.block_bytes,
            described.region,
        )

    def _check(self, message: m.Open) -> None:
        """Raise unless the consumer means us, as we are. Nothing has been read by then."""
        if message.version != m.KV_WIRE_VERSION:
            raise LayoutMismatch(f"side channel version {message.version}, not {m.KV_WIRE_VERSION}")
        handle = message.handle
        if handle.incarnation != self._info.incarnation:
            raise PeerLost("the producer has restarted since it made this offer")
        self.keys.check(handle)  # who has no handle learns nothing about us
        self.leases.find(handle.offer_id)
        check_layouts(self._info.kv_fingerprint, message.kv_fingerprint)

    def _renew(self, peer: bytes, claims: Sequence[str], now: float) -> list[Action]:
        actions: list[Action] = []
        for claim in claims:
            try:
                self._own(peer, claim)
                self.leases.renew(claim, now)
            except TransferError as error:
                actions.append(self._refuse(peer, claim, error))
        return [*actions, Send(peer, m.Renewed())]

    def _read(self, peer: bytes, message: m.Read, now: float) -> list[Action]:
        """Only blocks that this peer's claim covers, under a lease that stands. The peer gets an
        answer in any case: it waits for one on the transport's own connection."""
        try:
            self._own(peer, message.claim)
            covered = self.leases.reading(message.claim, now).block_ids
            if not set(message.block_ids) <= set(covered):
                raise TransferError("the claim does not cover the blocks asked for")
        except TransferError as error:
            return [self._refuse(peer, message.claim, error), Serve(message.request, ())]
        return [Serve(message.request, message.block_ids)]

    def _finish(self, peer: bytes, claim: str, now: float) -> list[Action]:
        """Answer with the epochs as they are while the blocks are still held; then let them go."""
        try:
            self._own(peer, claim)
            offer = self.leases.check(claim, now)
            epochs = self._epochs(list(offer.block_ids))
            ended = self.leases.finish(claim, now)
        except TransferError as error:
            return [self._refuse(peer, claim, error)]
        told = digest(
            self._opened(claim),
            offer.block_ids,
            offer.epochs,
            offer.hashes,
            offer.checksums,
            offer.first_token,
        )
        return [Send(peer, m.Finished(claim, tuple(epochs), told)), *self._give_back(ended)]

    def _is_reader(self, peer: bytes, claim: str) -> bool:
        return claim in self._readers and self._readers[claim][0] == peer

    def _own(self, peer: bytes, claim: str) -> None:
        if not self._is_reader(peer, claim):
            raise TransferError("no such claim")

    def _show(self, offer: Offer, start: int) -> list[Action]:
        """Tell the reader, if there is one, of the blocks from `start` on."""
        if offer.claim is None:
            return []
        reader, _ = self._readers[offer.claim]
        return [Send(reader, ready) for ready in _ready(offer, offer.claim, start)]

    def _give_back(self, ended: Ended | None, reason: TransferError | None = None) -> list[Action]:
        """The one place where blocks of an offer leave. `reason` is told to its reader."""
        if ended is None:
            return []
        actions: list[Action] = []
        if ended.claim is not None:
            peer, _ = self._readers.pop(ended.claim)
            if reason is not None:
                actions.append(Send(peer, m.Refused(ended.claim, reason.code, reason.message)))
        match ended.state:
            case State.RELEASED:
                self.counters.released += 1
                self.counters.bytes_released += len(ended.block_ids) * self._described.block_bytes
            case State.EXPIRED:
                self.counters.expired += 1
            case _:
                self.counters.aborted += 1
        has_expired = ended.state is State.EXPIRED
        return [*actions, *_free(ended.block_ids, ended.request_id, has_expired)]

    def _refuse(self, peer: bytes, claim: str, error: TransferError) -> Send:
        self.counters.refused[error.code] += 1
        return Send(peer, m.Refused(claim, error.code, error.message))

    # --- questions ---------------------------------------------------------------------------

    @property
    def num_readers(self) -> int:
        return len(self._readers)

    def ledger(self, now: float) -> list[dict[str, Any]]:
        """One row per live offer, for `/debug/kv`."""
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
            for offer in self.leases.offers()
        ]


def _ready(offer: Offer, claim: str, start: int) -> list[m.Ready]:
    """The blocks from `start` on, in messages of bounded size; the last may be empty."""
    is_complete = offer.state is State.COMPLETE
    end = len(offer.block_ids)
    starts = list(range(start, end, m.MAX_BLOCKS_PER_READY))
    if is_complete and not starts:
        starts = [end]
    found = []
    for first in starts:
        stop = min(end, first + m.MAX_BLOCKS_PER_READY)
        is_last = is_complete and stop == end
        found.append(
            m.Ready(
                claim,
                first,
                tuple(offer.block_ids[first:stop]),
                tuple(offer.epochs[first:stop]),
                tuple(offer.hashes[first:stop]),
                is_last,
                offer.first_token if is_last else None,
                tuple(offer.checksums[first:stop]),
            )
        )
    return found


def _free(block_ids: Sequence[int], request_id: str, has_expired: bool = False) -> list[Action]:
    if not block_ids and not has_expired:
        return []
    return [Free(tuple(block_ids), request_id, has_expired)]


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
