"""The registry: hears which instances there are, and passes it on to proxies that follow it.

    instances ──Register, Deregister──▶ registry ──the same──▶ followers: other workers of one port
                                           ▲──────Follow──────────┘

It judges nothing but who may deregister whom; what an instance is, each proxy learns from the
instance itself. A follower that is new, or was away, knows all of them within a second, because
they register again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.cluster_key import ClusterKey
from common.rpc import Link, Listener
from common.wire import (
    MAX_REGISTRY_MESSAGE_BYTES,
    Decoder,
    Deregister,
    Follow,
    Register,
    ToRegistry,
)

REGISTRY_PAUSE_S = 0.005  # after each burst: a flood costs a bounded share of the event loop
FOLLOWER_TIMEOUT_S = 3.0  # silent for so long: not passed on to any more
MAX_FOLLOWERS = 64
MAX_OWNERS = 1024
FOLLOW_S = 0.5

Heard = Callable[[bytes, Register | Deregister], None]  # (who said it, what)


@dataclass(slots=True)
class Audience:
    """Who follows, and who may deregister what. Plain state; time is a parameter."""

    _followers: dict[bytes, float] = field(default_factory=dict)  # by link: heard last
    _owners: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # id: incarnation, link

    def follows(self, peer: bytes, now: float) -> None:
        if peer in self._followers or len(self._followers) < MAX_FOLLOWERS:
            self._followers[peer] = now

    def of(self, peer: bytes, message: Register | Deregister, now: float) -> list[bytes]:
        """Whom to pass this message on to."""
        if isinstance(message, Register):
            self._register(peer, message)
        elif self._owners.get(message.instance_id) != (message.incarnation, peer):
            return []
        self._followers = {
            follower: heard
            for follower, heard in self._followers.items()
            if now - heard <= FOLLOWER_TIMEOUT_S
        }
        return list(self._followers)

    def _register(self, peer: bytes, message: Register) -> None:
        info = message.info
        self._owners.pop(info.instance_id, None)  # the youngest are last
        self._owners[info.instance_id] = (info.incarnation, peer)
        if len(self._owners) > MAX_OWNERS:
            del self._owners[next(iter(self._owners))]


class Registry:
    """Raises as `common.rpc.Listener`. `on_message` gets what instances say; None: only pass on."""

    def __init__(
        self, bind: str, on_message: Heard | None = None, key: ClusterKey | None = None
    ) -> None:
        self._on_message = on_message
        self._audience = Audience()
        self._listener = Listener(
            bind,
            Decoder(ToRegistry, MAX_REGISTRY_MESSAGE_BYTES),
            self._receive,
            max_bytes=MAX_REGISTRY_MESSAGE_BYTES,
            pause_s=REGISTRY_PAUSE_S,
            key=key,
        )
        self.endpoint = self._listener.endpoint

    @property
    def refused(self) -> int:
        """Messages that were none."""
        return self._listener.refused

    @property
    def failed(self) -> int:
        """Messages whose handling raised."""
        return self._listener.failed

    @property
    def denied(self) -> int:
        """Peers that did not show the cluster key."""
        return self._listener.denied

    async def close(self) -> None:
        await self._listener.close()

    def _receive(self, peer: bytes, message: Any) -> None:
        now = time.monotonic()
        if isinstance(message, Follow):
            self._audience.follows(peer, now)
            return
        if self._on_message is not None:
            self._on_message(peer, message)
        for follower in self._audience.of(peer, message, now):
            self._listener.send(follower, message)


def follow(endpoint: str, on_message: Heard, key: ClusterKey | None) -> Link:
    """A link to somebody else's registry; send `Follow` over it every `FOLLOW_S`."""
    return Link(
        endpoint,
        Decoder(ToRegistry, MAX_REGISTRY_MESSAGE_BYTES),
        lambda message: None if isinstance(message, Follow) else on_message(b"", message),
        max_bytes=MAX_REGISTRY_MESSAGE_BYTES,
        key=key,
    )
