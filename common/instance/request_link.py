"""The instance's end of the request links: proxies come and go, each is greeted, fed and watched.

A proxy that is silent for `PEER_TIMEOUT_S` has died: `on_peer_lost` aborts what it had asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from common.cluster_key import ClusterKey
from common.rpc import Listener
from common.wire import MAX_MESSAGE_BYTES, Decoder, Hello, InstanceInfo, Load, ToInstance, Welcome

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
PEER_TIMEOUT_S = 2.0  # four missed heartbeats


class RequestLinks:
    """`on_message(peer, message)` gets everything but `Hello`. `load()` is None while nothing
    progresses: then no heartbeat goes out, and the proxies learn that way."""

    def __init__(
        self,
        bind: str,
        *,
        on_message: Callable[[bytes, Any], None],
        on_peer_lost: Callable[[bytes], None],
        load: Callable[[], Load | None],
        key: ClusterKey | None = None,
        announce_host: str = "",
    ) -> None:
        self._on_message = on_message
        self._on_peer_lost = on_peer_lost
        self._load = load
        self._last_heard: dict[bytes, float] = {}
        self._info: InstanceInfo | None = None
        self._listener = Listener(
            bind,
            Decoder(ToInstance),
            self._receive,
            max_bytes=MAX_MESSAGE_BYTES,
            key=key,
            announce_host=announce_host,
        )
        self.endpoint = self._listener.endpoint
        self._beat: asyncio.Task[None] | None = None

    def start(self, info: InstanceInfo) -> None:
        """Begin to greet proxies; before this, their messages are ignored and they ask again."""
        self._info = info
        self._beat = asyncio.create_task(self._heartbeat())

    def announce(self, info: InstanceInfo) -> None:
        """The instance is another from now on: greet every proxy again."""
        self._info = info
        for peer in list(self._last_heard):
            self.send(peer, Welcome(info))
            self._send_load(peer)

    def tell(self, info: InstanceInfo, news: msgspec.Struct) -> None:
        """The instance is the same, but says more: `news` to who knows it, `info` to who comes."""
        self._info = info
        for peer in list(self._last_heard):
            self.send(peer, news)

    def send(self, peer: bytes, message: msgspec.Struct) -> bool:
        return self._listener.send(peer, message)

    @property
    def num_peers(self) -> int:
        return len(self._last_heard)

    @property
    def refused(self) -> int:
        return self._listener.refused

    @property
    def denied(self) -> int:
        return self._listener.denied

    def announce_load(self) -> None:
        """Tell every proxy now, not at the next beat: a drain has begun."""
        load = self._load()
        if load is not None:
            for peer in list(self._last_heard):
                self.send(peer, load)

    def _receive(self, peer: bytes, message: Any) -> None:
        if self._info is None:
            return
        is_new = peer not in self._last_heard
        self._last_heard[peer] = time.monotonic()
        if isinstance(message, Hello):
            if is_new:
                self.send(peer, Welcome(self._info))
                self._send_load(peer)
        else:
            self._on_message(peer, message)

    def _send_load(self, peer: bytes) -> None:
        load = self._load()
        if load is not None:
            self.send(peer, load)

    async def _heartbeat(self) -> None:
        while True:
            now = time.monotonic()
            for peer, heard in list(self._last_heard.items()):
                if now - heard > PEER_TIMEOUT_S:
                    del self._last_heard[peer]
                    log.info("a proxy is silent: its requests are aborted")
                    self._on_peer_lost(peer)
            self.announce_load()
            await asyncio.sleep(HEARTBEAT_S)

    async def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beat
        await self._listener.close()
