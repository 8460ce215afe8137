"""The consumer's connection to one producer: its side channel, heartbeats for its claims, its
memory.

A connection that breaks ends its claims at once, since messages may be lost and what comes next may
be another process. Beats only while there are claims. Silence is counted in beats that brought no
answer, not in wall time: a consumer whose own event loop stood still does not take that for the
producer's death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from common.cluster_key import ClusterKey
from common.errors import PeerLost, TransferError
from common.rpc import Link
from common.wire import Decoder, Message
from kv_transfer import messages as m
from kv_transfer.claim import Claim
from kv_transfer.transport.base import Peer

BEATS_PER_SILENCE = 6
BEATS_PER_LEASE = 4
CONNECT_S = 2.0


class ProducerLink:
    def __init__(self, endpoint: str, silence_s: float, key: ClusterKey | None = None) -> None:
        self.claims: dict[str, Claim] = {}
        self.is_lost = False
        self._silence_s = silence_s
        self._beat_s = silence_s / BEATS_PER_SILENCE
        self._has_answered = False
        self._beats: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._on_idle: Callable[[], None] = lambda: None
        self._peer: asyncio.Future[Peer] | None = None
        self._link = Link(
            endpoint,
            Decoder(m.ToConsumer, m.MAX_KV_MESSAGE_BYTES),
            self._on_message,
            max_bytes=m.MAX_KV_MESSAGE_BYTES,
            on_disconnect=self._lose,
            key=key,
        )

    @property
    def num_bad_messages(self) -> int:
        return self._link.refused + self._link.failed

    def open(self, claim: Claim, message: m.Open) -> None:
        self.claims[claim.token] = claim
        self._not_idle()
        self.send(message)
        if self._beats is None or self._beats.done():
            self._start_beats()

    def _start_beats(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    def send(self, message: Message) -> None:
        if not self._link.send(message):
            self._lose()

    def peer(self, connect: Callable[[], asyncio.Future[Peer]]) -> asyncio.Future[Peer]:
        """The producer's memory, opened by the first who asks, and again after a failure."""
        if self._peer is None or (self._peer.done() and _has_failed(self._peer)):
            self._peer = connect()
            self._peer.add_done_callback(_has_failed)  # it may fail when nobody waits any more
        return self._peer

    def when_idle(self, after_s: float, then: Callable[[], None]) -> None:
        """Call `then` unless a claim is opened within that time; at once if the producer dies."""
        self._idle = asyncio.get_running_loop().call_later(after_s, then)
        self._on_idle = then

    def _on_message(self, message: Any) -> None:
        self._has_answered = True
        if isinstance(message, m.Renewed):
            return
        claim = self.claims.get(message.claim)
        if claim is None:
            return  # its fetch has ended
        if isinstance(message, m.Opened) and message.lease_s < self._beat_s * BEATS_PER_LEASE:
            self._beat_s = message.lease_s / BEATS_PER_LEASE
            self._start_beats()
        claim.on_message(message)

    async def _beat(self) -> None:
        silent_s = 0.0
        while self.claims:
            self._has_answered = False
            await asyncio.sleep(self._beat_s)
            silent_s = 0.0 if self._has_answered else silent_s + self._beat_s
            if silent_s >= self._silence_s:
                self._lose()
                return
            tokens = tuple(self.claims)
            for start in range(0, len(tokens), m.MAX_CLAIMS_PER_RENEW):
                self.send(m.Renew(tokens[start : start + m.MAX_CLAIMS_PER_RENEW]))

    def _lose(self) -> None:
        self.is_lost = True
        if self._idle is not None:
            self._not_idle()
            self._on_idle()
        for claim in self.claims.values():
            claim.fail(PeerLost("the producer has stopped answering"))

    def _not_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def close(self) -> None:
        """Fails the claims that are left."""
        self._not_idle()
        for claim in self.claims.values():
            claim.fail(TransferError("the consumer is closing"))
        if self._beats is not None:
            self._beats.cancel()
            await asyncio.gather(self._beats, return_exceptions=True)
        if self._peer is not None:
            await asyncio.wait({self._peer}, timeout=CONNECT_S)
            if self._peer.done() and not _has_failed(self._peer):
                self._peer.result().close()
        await self._link.close()


def _has_failed(peer: asyncio.Future[Peer]) -> bool:
    return peer.cancelled() or peer.exception() is not None
