"""ZeroMQ endpoints for `common/wire.py` messages: a `Listener` (ROUTER) and `Link`s (DEALER).

Both have one boundary around each message: what does not decode, and what a handler raises, is
counted, logged and survived. Sending never blocks: a peer that does not read loses messages beyond
the high-water mark, which its heartbeat reveals.

With a `ClusterKey` everything is encrypted and both ends prove that they hold the key (CURVE);
without one a listener binds to loopback only.

    link = Link("tcp://127.0.0.1:5000", Decoder(ToProxy), on_message=handle)
    link.send(Hello("proxy-1"))
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import msgspec
import zmq
import zmq.asyncio

from common.addresses import bracketed, host_of, is_loopback
from common.cluster_key import ClusterKey
from common.doorkeeper import FAILED_HANDSHAKE, LOG_EVERY_S, Doorkeeper, next_event, watch_socket
from common.errors import ConfigError
from common.inbox import Inbox, plain_socket
from common.wire import Decoder, WireError, encode

log = logging.getLogger(__name__)

HIGH_WATER_MARK = 10_000
LINGER_MS = 200  # that queued messages get to leave when their socket is closed


class _Counts(Protocol):
    refused: int
    failed: int


class Listener:
    """A bound ROUTER. `on_message(peer, message)` runs in the event loop and must not block."""

    def __init__(
        self,
        bind: str,
        decoder: Decoder,
        on_message: Callable[[bytes, Any], None],
        *,
        max_bytes: int,
        pause_s: float = 0.0,
        key: ClusterKey | None = None,
        announce_host: str = "",
    ) -> None:
        """`bind`: `tcp://host:port`, port 0 for any free one. Raises `zmq.ZMQError` if taken,
        ConfigError for an address that others can reach, without a key.

        `pause_s`: rest after each burst, which bounds what a flood costs; peers are served in turn.
        `announce_host`: stands in `endpoint` instead of the bound address.
        """
        check_bind(host_of(bind), key)
        self._decoder = decoder
        self._on_message = on_message
        self._doorkeeper = None if key is None else Doorkeeper(key)
        self._socket = (
            plain_socket(zmq.asyncio.Context.instance(), zmq.ROUTER)
            if self._doorkeeper is None
            else self._doorkeeper.socket
        )
        _set_limits(self._socket, bind, max_bytes)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            self._socket.bind(bind.replace(":0", ":*") if bind.endswith(":0") else bind)
        except zmq.ZMQError:
            if self._doorkeeper is None:
                self._socket.close(linger=0)
            else:
                self._doorkeeper.give_up()
            raise
        bound = cast(bytes, self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        self.endpoint: str = (
            f"tcp://{bracketed(announce_host)}:{bound.rpartition(':')[2]}"
            if announce_host
            else bound
        )
        self.refused = 0  # messages that did not decode
        self.failed = 0  # messages whose handler raised
        self._inbox = Inbox(self._socket, self._on_frames, pause_s)

    @property
    def denied(self) -> int:
        """Peers that did not show the cluster key."""
        return 0 if self._doorkeeper is None else self._doorkeeper.denied

    def send(self, peer: bytes, message: msgspec.Struct) -> bool:
        """Queue one message; False if the peer has gone or does not read."""
        return self._inbox.send((peer, encode(message)))

    def _on_frames(self, frames: list[bytes]) -> None:
        peer, *rest = frames
        _dispatch(rest, self._decoder, partial(self._on_message, peer), self)

    async def close(self) -> None:
        self._inbox.close()
        if self._doorkeeper is None:
            self._socket.close(linger=LINGER_MS)
        else:
            await self._doorkeeper.close(LINGER_MS)


class Link:
    """A DEALER connected to one listener; reconnects by itself. Its identity is new per link.

    `on_disconnect` is called when an established connection breaks: messages may have been lost,
    and what is queued would reach whoever listens there next, so the owner may want a new link.
    `on_unreachable` is called when it cannot be connected: nobody listens there. It goes on trying.
    """

    def __init__(
        self,
        endpoint: str,
        decoder: Decoder,
        on_message: Callable[[Any], None],
        *,
        max_bytes: int,
        on_disconnect: Callable[[], None] | None = None,
        on_unreachable: Callable[[], None] | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._decoder = decoder
        self._on_message = on_message
        self._socket = plain_socket(zmq.asyncio.Context.instance(), zmq.DEALER)
        _set_limits(self._socket, endpoint, max_bytes)
        self._socket.setsockopt(zmq.IDENTITY, uuid.uuid4().bytes)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if key is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, key.listener.public)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, key.link.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, key.link.secret)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            raise
        loop = asyncio.get_running_loop()
        self._refused_at = -math.inf
        self._on_disconnect = on_disconnect
        self._on_unreachable = on_unreachable
        self._monitor = watch_socket(
            self._socket,
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | FAILED_HANDSHAKE,
        )
        self._watcher = loop.create_task(self._watch())
        self.refused = 0
        self.failed = 0
        self._inbox = Inbox(self._socket, self._on_frames)

    def send(self, message: msgspec.Struct) -> bool:
        """Queue one message; False if nothing can be queued (the peer does not read)."""
        return self._inbox.send((encode(message),))

    def _on_frames(self, frames: list[bytes]) -> None:
        _dispatch(frames, self._decoder, self._on_message, self)

    async def _watch(self) -> None:
        has_broken = False  # then each try begins with a pause, which is reported alike
        while True:
            event = await next_event(self._monitor)
            if event & FAILED_HANDSHAKE:
                self._complain()
            elif event & zmq.EVENT_DISCONNECTED:
                has_broken = True
                _call(self._on_disconnect)
            elif not has_broken:
                _call(self._on_unreachable)

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._refused_at >= LOG_EVERY_S:
            self._refused_at = now
            log.warning("no handshake with %s: is the cluster key the same there?", self.endpoint)

    async def close(self, linger_ms: int = LINGER_MS) -> None:
        """Give queued messages `linger_ms` to leave; 0 drops them."""
        self._socket.disable_monitor()
        await _end(self._watcher)
        self._monitor.close(linger=0)
        self._inbox.close()
        self._socket.close(linger=linger_ms)


def check_bind(host: str, key: ClusterKey | None) -> None:
    """Raises ConfigError unless `host` is loopback or there is a key to show at the door."""
    if key is None and not is_loopback(host):
        raise ConfigError(
            f"links between processes at {host or '*'} would be open to the network: set "
            "XPYD_CLUSTER_KEY or --cluster-key-file (docs/security.md), or stay at 127.0.0.1"
        )


def _call(handler: Callable[[], None] | None) -> None:
    if handler is None:
        return
    try:
        handler()
    except Exception:
        log.exception("handler of a broken connection failed")


def _dispatch(
    frames: list[bytes], decoder: Decoder, handler: Callable[[Any], None], counts: _Counts
) -> None:
    try:
        if len(frames) != 1:
            raise WireError(f"{len(frames)} frames, expected 1")
        message = decoder(frames[0])
    except WireError as error:
        counts.refused += 1
        if counts.refused & (counts.refused - 1) == 0:  # a flood must not fill the log
            log.warning("message refused: %s (refused so far: %d)", error, counts.refused)
        return
    try:
        handler(message)
    except Exception:
        counts.failed += 1
        log.exception("handler of %s failed", type(message).__name__)


def _set_limits(socket: zmq.Socket[bytes], endpoint: str, max_bytes: int) -> None:
    socket.setsockopt(zmq.IPV6, "[" in endpoint)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
