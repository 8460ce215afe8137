"""Who may pass a ZeroMQ listener: asks every peer for the cluster key, counts whom it sent away.

A listener with a key has a ZeroMQ context of its own, because the handler that libzmq asks (ZAP,
RFC 27) is one per context. So each listener also pays for a flood of handshakes with its own I/O
thread, and the links of others go on. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from typing import Any, cast

import zmq
import zmq.asyncio
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from common.cluster_key import ClusterKey
from common.inbox import plain_socket

log = logging.getLogger(__name__)

FAILED_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
LOG_EVERY_S = 60.0
BURST = 64  # handled before the event loop gets its turn
_DOMAIN = b"xpyd"
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"


class Doorkeeper:
    """Guards the one `socket` that it makes; `close()` closes that socket as well."""

    def __init__(self, key: ClusterKey) -> None:
        self.denied = 0  # handshakes that ended without a peer
        self._allowed: bytes = z85.decode(key.link.public)
        self._logged_at = -math.inf
        self._context = zmq.asyncio.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP_ADDRESS)  # before there is anything to ask about
        self.socket = plain_socket(self._context, zmq.ROUTER)
        self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, key.listener.secret)
        self.socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no answer means no
        self._monitor = watch_socket(self.socket, FAILED_HANDSHAKE)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._answer()), loop.create_task(self._count())]

    async def _answer(self) -> None:
        while True:
            for _ in range(BURST):
                frames = await self._zap.recv_multipart()
                await self._zap.send_multipart(zap_reply(frames, self._allowed))
            await asyncio.sleep(0)

    async def _count(self) -> None:
        while True:
            for _ in range(BURST):
                await self._monitor.recv_multipart()
                self.denied += 1
                now = time.monotonic()
                if now - self._logged_at >= LOG_EVERY_S:
                    self._logged_at = now
                    log.warning(
                        "a peer ended in the handshake, which takes the right cluster key "
                        "(so far: %d)",
                        self.denied,
                    )
            await asyncio.sleep(0)

    async def close(self, linger_ms: int) -> None:
        self._shut(linger_ms)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._context.term)  # waits for what lingers

    def give_up(self) -> None:
        """As `close`, for a socket that never got a peer."""
        self._shut(0)
        self._context.term()

    def _shut(self, linger_ms: int) -> None:
        for task in self._tasks:
            task.cancel()
        self.socket.disable_monitor()
        self._monitor.close(linger=0)
        self._zap.close(linger=0)
        self.socket.close(linger=linger_ms)


def zap_reply(frames: list[bytes], allowed: bytes) -> list[bytes]:
    """Version, request id, status, reason, user id, metadata. Only `allowed`, a CURVE key of 32
    bytes, is let in."""
    request_id = frames[1] if len(frames) > 1 else b""
    is_allowed = (
        len(frames) == 7
        and frames[0] == _ZAP_VERSION
        and frames[2] == _DOMAIN
        and frames[5] == b"CURVE"
        and hmac.compare_digest(frames[6], allowed)
    )
    status = [b"200", b"OK"] if is_allowed else [b"400", b"no access"]
    return [_ZAP_VERSION, request_id, *status, b"", b""]


def watch_socket(socket: zmq.Socket[bytes], events: int) -> zmq.asyncio.Socket:
    """A socket that receives `events` of `socket`, end it with `socket.disable_monitor()`.

    Its queue has no limit: at one, libzmq's I/O thread would wait for us, and in `disable_monitor`
    we for it.
    """
    address = f"inproc://watch-{socket.FD}"
    socket.monitor(address, events)
    context = cast(Any, socket.context)
    watcher: zmq.asyncio.Socket = context.socket(zmq.PAIR, socket_class=zmq.asyncio.Socket)
    watcher.setsockopt(zmq.RCVHWM, 0)
    watcher.connect(address)
    return watcher


async def next_event(watcher: zmq.asyncio.Socket) -> int:
    """The `zmq.EVENT_…` that happened."""
    return int(parse_monitor_message(await watcher.recv_multipart())["event"])
