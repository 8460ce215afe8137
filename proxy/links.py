"""The effects that `membership` decides on: request links, heartbeats, registry, polling.

Who is alive is `Membership`'s business, what requests do is the relay's; this is the thin part
between them and the network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
import msgspec

from common.cluster_key import ClusterKey
from common.rpc import Link
from common.wire import (
    MAX_MESSAGE_BYTES,
    MAX_REGISTRY_MESSAGE_BYTES,
    Decoder,
    Deregister,
    Follow,
    Hello,
    InstanceInfo,
    Load,
    Register,
    ToProxy,
    Welcome,
    WireError,
    info_from_json,
)
from proxy.membership import Connect, Disconnect, Effect, Lost, Membership, Poll
from proxy.registry import Registry, follow

log = logging.getLogger(__name__)

TICK_S = 0.1
HEARTBEAT_S = 0.5
POLL_TIMEOUT_S = 2.0


class Links:
    """`start()` in a running event loop; `on_message(instance_id, message)` gets what instances
    answer, `on_lost(instance_id, reason)` is told when an instance or its link is gone."""

    def __init__(
        self,
        membership: Membership,
        *,
        proxy_id: str,
        on_message: Callable[[str, Any], None],
        on_lost: Callable[[str, str], None],
        on_tick: Callable[[float], None],
        key: ClusterKey | None = None,
    ) -> None:
        self.membership = membership
        self.registry: Registry | None = None
        self._followed: Link | None = None
        self._hello = Hello(proxy_id)
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_tick = on_tick
        self._key = key
        self._links: dict[str, Link] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._ticker: asyncio.Task[None] | None = None

    def start(self, registry: str = "", followed: str = "") -> None:
        """`registry`: `tcp://host:port` to bind, `followed`: of somebody else's; "" for none.
        Raises as `common.rpc.Listener`."""
        if registry:
            self.registry = Registry(registry, self._on_registry, self._key)
        if followed:
            self._followed = follow(followed, self._on_registry, self._key)
        timeout = aiohttp.ClientTimeout(total=POLL_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    def send(self, instance_id: str, message: msgspec.Struct) -> bool:
        """False if the instance has no link or does not read."""
        link = self._links.get(instance_id)
        return link is not None and link.send(message)

    def apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Connect):
                self._connect(effect)
            elif isinstance(effect, Disconnect):
                if link := self._links.pop(effect.instance_id, None):
                    self._spawn(link.close(linger_ms=0))
            elif isinstance(effect, Lost):
                self._on_lost(effect.instance_id, effect.reason)
            elif isinstance(effect, Poll):
                self._spawn(self.poll(effect.address))

    async def poll(self, address: str) -> str:
        """Ask who is there. Returns a complaint, "" if an instance answered."""
        answer = await self._ask(address)
        self.apply(self.membership.polled(address, answer, time.monotonic()))
        return answer if isinstance(answer, str) else ""

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        if self.registry is not None:
            await self.registry.close()
        if self._followed is not None:
            await self._followed.close()
        links = list(self._links.values())
        self._links.clear()
        await asyncio.gather(*(link.close() for link in links), *self._tasks)
        if self._session is not None:
            await self._session.close()

    # --- inside ------------------------------------------------------------------------------

    def _connect(self, effect: Connect) -> None:
        instance_id = effect.instance_id

        def is_current() -> bool:
            return self._links.get(instance_id) is link

        def on_message(message: Any) -> None:
            if is_current():
                self._receive(instance_id, message)

        def on_disconnect() -> None:
            if is_current():
                self.apply(self.membership.disconnected(instance_id, time.monotonic()))

        link = Link(
            effect.endpoint,
            Decoder(ToProxy),
            on_message,
            max_bytes=MAX_MESSAGE_BYTES,
            on_disconnect=on_disconnect,
            key=self._key,
        )
        self._links[instance_id] = link
        link.send(self._hello)

    def _receive(self, instance_id: str, message: Any) -> None:
        now = time.monotonic()
        if isinstance(message, Load):
            self.apply(self.membership.loaded(instance_id, message, now))
        elif isinstance(message, Welcome):
            self.apply(self.membership.welcome(instance_id, message.info, now))
        else:
            self.membership.heard(instance_id, now)
            self._on_message(instance_id, message)

    def _on_registry(self, peer: bytes, message: Any) -> None:
        if isinstance(message, Register):
            now = time.monotonic()
            self.apply(self.membership.found(message.info, "registry", now, peer))
        elif isinstance(message, Deregister):
            names = message.instance_id, message.incarnation
            self.apply(self.membership.deregister(*names, peer))

    async def _tick(self) -> None:
        next_beat = 0.0
        while True:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                if self._followed is not None:
                    self._followed.send(Follow(self._hello.proxy_id))
                for link in self._links.values():
                    link.send(self._hello)
            try:
                self.apply(self.membership.tick(now))
                self._on_tick(now)
            except Exception:  # the heart must go on beating
                log.exception("tick failed")
            await asyncio.sleep(TICK_S)

    async def _ask(self, address: str) -> InstanceInfo | str:
        """Who is at `address`, or why nobody is."""
        assert self._session is not None
        shown = {"Authorization": f"Bearer {self._key.http_token}"} if self._key else {}
        try:
            async with self._session.get(
                f"http://{address}/instance", allow_redirects=False, headers=shown
            ) as response:
                body = await response.content.read(MAX_REGISTRY_MESSAGE_BYTES + 1)
                while not response.content.at_eof() and len(body) <= MAX_REGISTRY_MESSAGE_BYTES:
                    body += await response.content.read(MAX_REGISTRY_MESSAGE_BYTES)
                if response.status != 200:
                    return f"GET /instance answers {response.status}"
                return info_from_json(body)
        except WireError as error:
            return f"GET /instance gives no instance: {error}"
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            return f"does not answer ({type(error).__name__})"

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
