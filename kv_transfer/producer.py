"""The producer's face: offers a prompt's blocks as they fill, and hands each back exactly once.

Runs in the event loop. What is decided, is decided in `producer_protocol.py`; here are its socket,
its clock and its timer. It knows block ids and epochs, not what is in a block; how bytes move is
`transport/`. From `extend` on the blocks belong to the lease table, until `free` is called with
them: because the consumer finished, because the request was released, or because the lease expired.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.cluster_key import ClusterKey
from common.errors import TransferError
from common.rpc import Listener
from common.wire import Decoder, KVHandle
from kv_transfer import messages as m
from kv_transfer.batch import Batch, FilledBlocks
from kv_transfer.counters import ProducerCounters, as_object
from kv_transfer.handles import HandleKey
from kv_transfer.identity import KVIdentity
from kv_transfer.poller import Poller
from kv_transfer.producer_protocol import (
    Action,
    Described,
    Free,
    ProducerProtocol,
    Send,
    Serve,
)
from kv_transfer.publisher import Publisher
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Transport
from kv_transfer.write_behind import WriteBehind

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
WRITTEN_BEHIND = 4  # at most the pool's blocks divided by this wait to be written


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
        self._lease_s = lease_s
        self._protocol: ProducerProtocol | None = None
        self._listener: Listener | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._wake_reaper = asyncio.Event()
        self._poller: Poller | None = None
        self._publisher: Publisher | None = None
        self._behind: WriteBehind | None = None
        self._logged_at = -math.inf

    async def start(self, bind: str, announce_host: str = "") -> None:
        """Listen at `tcp://host:port`; handles name `announce_host` instead, if it is given. Raises
        ConfigError, or zmq.ZMQError if the port is taken."""
        transport, region = self._transport, self._region
        described = Described(
            transport.name,
            region.num_blocks,
            region.block_bytes,
            transport.describe(),
            transport.uses_hashes,
        )
        self._listener = Listener(
            bind,
            Decoder(m.ToProducer, m.MAX_KV_MESSAGE_BYTES),
            self._on_message,
            max_bytes=m.MAX_KV_MESSAGE_BYTES,
            key=self._key,
            announce_host=announce_host,
        )
        self._protocol = ProducerProtocol(
            self._info,
            described,
            self._listener.endpoint,
            self._lease_s,
            self._epochs,
            HandleKey(self._key),
        )
        if transport.publishes or transport.checksums:
            self._publisher = Publisher(transport, region, self._admit, self._drop)
        if transport.publishes_behind:
            max_blocks = max(1, region.num_blocks // WRITTEN_BEHIND)
            self._behind = WriteBehind(transport, max_blocks, self._free)
        if transport.polls:
            leases = self._protocol.leases
            self._poller = Poller(transport, lambda: leases.num_claims > 0)
        self._reaper = asyncio.get_running_loop().create_task(self._reap())

    @property
    def protocol(self) -> ProducerProtocol:
        assert self._protocol is not None, "not started"
        return self._protocol

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def endpoint(self) -> str:
        """`tcp://host:port` of the side channel."""
        assert self._listener is not None, "not started"
        return self._listener.endpoint

    # --- what prefill calls ------------------------------------------------------------------

    def offer(
        self, request_id: str, num_tokens: int, num_blocks: int, content: str = ""
    ) -> KVHandle:
        """Announce the KV of a prompt. It ends with the last `extend`'s lease, or by `release`.

        content:  what the KV is of (handles.content_of)
        """
        now = time.monotonic()
        return self.protocol.offer(request_id, num_tokens, num_blocks, content, now)

    def extend(self, filled: FilledBlocks, first_token: int | None = None) -> None:
        """Take over the holds of these blocks. With the last of them: what prefill sampled."""
        offer = self.protocol.leases.of_request(filled.request_id)
        batch = Batch(offer, filled, first_token)
        if self._publisher is None:
            self._admit(batch)
        else:
            self._publisher.put(batch)

    def release(self, request_id: str) -> None:
        """Forget the request's offer, in any state; unknown requests are ignored."""
        self._do(self.protocol.release(request_id))

    async def close(self) -> None:
        """End all offers and hand their blocks back. Idempotent."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        if self._poller is not None:
            await self._poller.close()
        if self._publisher is not None:
            await self._publisher.close()
        if self._protocol is not None:
            self._do(self._protocol.release_all())
        if self._behind is not None:
            await self._behind.close()
        if self._listener is not None:
            await self._listener.close()
        await asyncio.to_thread(self._transport.close)

    # --- questions ---------------------------------------------------------------------------

    @property
    def counters(self) -> ProducerCounters:
        return self.protocol.counters

    def ledger(self) -> list[dict[str, Any]]:
        """One row per live offer, for `/debug/kv`."""
        return self.protocol.ledger(time.monotonic())

    @property
    def num_leases(self) -> int:
        """Offers that hold blocks."""
        return sum(1 for offer in self.protocol.leases.offers() if offer.block_ids)

    @property
    def num_blocks_held(self) -> int:
        published = sum(len(offer.block_ids) for offer in self.protocol.leases.offers())
        unpublished = 0 if self._publisher is None else self._publisher.num_blocks
        return published + unpublished + (0 if self._behind is None else self._behind.num_kept)

    @property
    def num_transfers(self) -> int:
        """Offers that a consumer is reading or waiting for."""
        return self.protocol.leases.num_claims

    @property
    def num_bad_messages(self) -> int:
        return 0 if self._listener is None else self._listener.refused + self._listener.failed

    def snapshot(self) -> dict[str, Any]:
        """Counters and gauges as one flat object."""
        return as_object(self.counters) | {
            "leases": self.num_leases,
            "blocks_held": self.num_blocks_held,
            "transfers_pending": self.num_transfers,
            "blocks_not_written": 0 if self._behind is None else self._behind.num_skipped,
            "bad_messages": self.num_bad_messages,
            "denied_peers": 0 if self._listener is None else self._listener.denied,
        }

    # --- events ------------------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: Any) -> None:
        self._do(self.protocol.received(peer, message, time.monotonic()))

    def _admit(self, batch: Batch) -> None:
        if self._behind is not None and batch.offer is not None and batch.offer.is_live:
            self._behind.put(batch.filled)
        self._do(self.protocol.admit(batch, time.monotonic()))

    def _drop(self, batch: Batch, error: TransferError) -> None:
        """Publishing failed."""
        self._do(self.protocol.drop(batch, error))
        self.counters.failures[error.code] += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.warning("KV blocks were not published: %s", error.message)

    async def _reap(self) -> None:
        """Expire leases when they are due; asleep while there are none."""
        while True:
            try:
                self._do(self.protocol.tick(time.monotonic()))
            except Exception:
                log.exception("blocks of an expired lease were not handed back")
            deadline = self.protocol.next_deadline()
            if math.isinf(deadline):
                self._wake_reaper.clear()
                await self._wake_reaper.wait()
            else:  # a deadline that comes up meanwhile is a whole lease away
                await asyncio.sleep(max(deadline - time.monotonic(), 0.001))

    # --- actions -----------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        assert self._listener is not None
        for action in actions:
            match action:
                case Send(peer=peer, message=message):
                    self._listener.send(peer, message)  # a peer that has gone loses its lease
                    if isinstance(message, m.Ready) and self._poller is not None:
                        self._poller.blocks_shown()
                case Serve(request=request, block_ids=block_ids):
                    self._serve(request, block_ids)
                case Free(block_ids=block_ids, request_id=request_id, has_expired=has_expired):
                    if has_expired:
                        log.warning("lease expired request_id=%s", request_id)
                    self._give_back(block_ids)
        self._wake_reaper.set()

    def _give_back(self, block_ids: Sequence[int]) -> None:
        free = list(block_ids) if self._behind is None else self._behind.given_back(block_ids)
        if free:
            self._free(free)

    def _serve(self, request: bytes, block_ids: tuple[int, ...]) -> None:
        try:
            self._transport.serve(request, block_ids)
        except TransferError as error:  # the consumer waits in vain, for as long as it will
            self.counters.failures[error.code] += 1
            log.warning("a consumer was not served: %s", error.message)
