"""The consumer's connection to one producer: its side channel, heartbeats for its claims, its
memory.

A connection that breaks is replaced by a new one, on which the claims are opened again: messages
may be lost, and whoever answers now must show that it still knows them. Where nobody listens any
more the producer is lost at once, and after a silence. Beats only while there are claims.
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
from kv_transfer.held_offer import HeldOffer
from kv_transfer.pulse import Pulse, renewals
from kv_transfer.reader import Reader

CONNECT_S = 2.0


class ProducerLink:
    def __init__(
        self,
        endpoint: str,
        silence_s: float,
        connect: Callable[[m.Opened], asyncio.Future[Reader]],
        key: ClusterKey | None = None,
    ) -> None:
        """`connect` opens the producer's memory, in a thread."""
        self.claims: dict[str, HeldOffer] = {}
        self.is_lost = False
        self._endpoint = endpoint
        self._key = key
        self._num_bad = 0  # messages, on connections that broke
        self._broken: set[asyncio.Task[None]] = set()  # being closed
        self._pulse = Pulse(silence_s)
        self._connect = connect
        self._beats: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._on_idle: Callable[[], None] = lambda: None
        self._reader: asyncio.Future[Reader] | None = None
        self._link = self._dial()

    def _dial(self) -> Link:
        """Raises zmq.ZMQError for an endpoint that is none."""

        def if_current(then: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: Any) -> None:
                if self._link is link and not self.is_lost:
                    then(*arguments)

            return call

        link = Link(
            self._endpoint,
            Decoder(m.ToConsumer, m.MAX_KV_MESSAGE_BYTES),
            if_current(self._on_message),
            max_bytes=m.MAX_KV_MESSAGE_BYTES,
            on_disconnect=if_current(self._replace),
            on_unreachable=if_current(self._lose),
            key=self._key,
        )
        return link

    def _replace(self) -> None:
        """The connection has broken: go on over another."""
        if not self.claims:
            self._lose()
            return
        old, self._link = self._link, self._dial()
        self._num_bad += old.refused + old.failed
        closing = asyncio.get_running_loop().create_task(old.close(linger_ms=0))
        self._broken.add(closing)
        closing.add_done_callback(self._broken.discard)
        for held in list(self.claims.values()):
            held.reopen()

    @property
    def num_bad_messages(self) -> int:
        return self._num_bad + self._link.refused + self._link.failed

    def open(self, token: str, held: HeldOffer) -> None:
        self.claims[token] = held
        self._not_idle()
        held.start()
        if self._beats is None or self._beats.done():
            self._start_beats()

    def _start_beats(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    def send(self, message: Message) -> None:
        if not self._link.send(message):
            self._lose()

    def reader(self, opened: m.Opened) -> asyncio.Future[Reader]:
        """The producer's memory, opened by the first who asks, and again after a failure."""
        if self._reader is None or (self._reader.done() and _has_failed(self._reader)):
            self._reader = self._connect(opened)
            self._reader.add_done_callback(_has_failed)  # it may fail when nobody waits any more
        return self._reader

    def when_idle(self, after_s: float, then: Callable[[], None]) -> None:
        """Call `then` unless a claim is opened within that time; at once if the producer dies."""
        self._idle = asyncio.get_running_loop().call_later(after_s, then)
        self._on_idle = then

    def _on_message(self, message: Any) -> None:
        self._pulse.heard()
        if isinstance(message, m.Renewed):
            return
        held = self.claims.get(message.claim)
        if held is None:
            return  # its fetch has ended
        if isinstance(message, m.Opened) and not self._pulse.fits(message.lease_s):
            self._start_beats()
        held.on_message(message)

    async def _beat(self) -> None:
        self._pulse.start()
        while self.claims:
            await asyncio.sleep(self._pulse.beat_s)
            if not self._pulse.beat():
                self._lose()
                return
            for renew in renewals(self.claims):
                self.send(renew)

    def _lose(self) -> None:
        self.is_lost = True
        if self._idle is not None:
            self._not_idle()
            self._on_idle()
        self._fail_all(PeerLost("the producer has stopped answering"))

    def _fail_all(self, error: TransferError) -> None:
        for held in list(self.claims.values()):
            held.fail(error)

    def _not_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def close(self) -> None:
        """Fails the claims that are left."""
        self._not_idle()
        self._fail_all(TransferError("the consumer is closing"))
        if self._beats is not None:
            self._beats.cancel()
            await asyncio.gather(self._beats, return_exceptions=True)
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=CONNECT_S)
            if self._reader.done() and not _has_failed(self._reader):
                self._reader.result().close()
        await asyncio.gather(self._link.close(), *self._broken)


def _has_failed(reader: asyncio.Future[Reader]) -> bool:
    return reader.cancelled() or reader.exception() is not None
