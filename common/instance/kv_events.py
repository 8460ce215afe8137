"""Publishes what enters and leaves the prefix cache, numbered, with replay (docs/kv-events.md).

PUB frames `[topic, number, payload]`; whoever misses a number asks the replay ROUTER for it.
Sending never waits: a subscriber that does not read loses batches beyond the high-water mark.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import deque
from typing import Any, cast

import zmq
import zmq.asyncio

from common.engine.driver import EngineDriver
from common.engine.interface import StepResult
from common.errors import ConfigError
from common.instance.kv_event_format import (
    RANK,
    AllBlocksCleared,
    Event,
    NameOf,
    encode_batch,
    no_name,
    to_events,
)
from common.instance.kv_events_config import FLAG, KVEventsConfig, binds

log = logging.getLogger(__name__)

MAX_BUFFER_BYTES = 128 << 20  # for replay, whatever `buffer_steps` says
MAX_REQUEST_BYTES = 64
STALLED_S = 5.0  # a reader that takes nothing for so long is given up
END = (-1).to_bytes(8, "big", signed=True)


class KVEventPublisher:
    """Made in a running event loop. Raises ConfigError if an endpoint cannot be had."""

    def __init__(
        self,
        config: KVEventsConfig,
        *,
        block_size: int,
        medium: str,
        name_of: NameOf = no_name,
    ) -> None:
        """`name_of`: the name of a LoRA adapter, by its digest."""
        self._name_of = name_of
        self._topic = config.topic.encode()
        self._block_size = block_size
        self._medium = medium
        self._next_seq = 0
        self._buffer: deque[tuple[int, bytes]] = deque()
        self._buffer_bytes = 0
        self._max_steps = config.buffer_steps
        context = zmq.asyncio.Context.instance()
        self._publisher = context.socket(zmq.PUB)
        self._publisher.setsockopt(zmq.SNDHWM, config.hwm)
        self._router: zmq.asyncio.Socket | None = None
        self._replays: asyncio.Task[None] | None = None
        try:
            self.endpoint = _attach(self._publisher, config.endpoint)
            self.replay_endpoint: str | None = None
            if config.replay_endpoint:
                self._router = context.socket(zmq.ROUTER)
                self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
                self._router.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
                self.replay_endpoint = _attach(self._router, config.replay_endpoint)
        except ConfigError:
            self._close_sockets()
            raise
        if self._router is not None:
            self._replays = asyncio.get_running_loop().create_task(self._serve(self._router))

    def start(self, driver: EngineDriver) -> None:
        """Begin: with an event that says that a new instance holds nothing."""
        self.publish([AllBlocksCleared()])
        driver.listeners.append(self._on_step)
        driver.post(lambda engine: engine.report_prefixes())

    def publish(self, events: list[Event]) -> None:
        """One batch."""
        payload = encode_batch(time.time(), events)
        seq = self._next_seq
        self._next_seq += 1
        self._buffer.append((seq, payload))
        self._buffer_bytes += len(payload)
        while len(self._buffer) > self._max_steps or self._buffer_bytes > MAX_BUFFER_BYTES:
            self._buffer_bytes -= len(self._buffer.popleft()[1])
        _send(self._publisher, [self._topic, seq.to_bytes(8, "big"), payload])

    def sources(self) -> list[dict[str, Any]]:
        """Where to subscribe, as `GET /kv_event_sources` answers."""
        return [
            {
                "data_parallel_rank": RANK,
                "endpoint": self.endpoint,
                "replay_endpoint": self.replay_endpoint,
                "topic": self._topic.decode(),
            }
        ]

    async def close(self) -> None:
        if self._replays is not None:
            self._replays.cancel()
            await asyncio.gather(self._replays, return_exceptions=True)
        self._close_sockets()

    # --- inside ------------------------------------------------------------------------------

    def _on_step(self, result: StepResult) -> None:
        if events := to_events(result.prefixes, self._block_size, self._medium, self._name_of):
            self.publish(events)

    async def _serve(self, router: zmq.asyncio.Socket) -> None:
        """One replay after the other."""
        while True:
            frames = await router.recv_multipart()
            if len(frames) == 3 and not frames[1] and len(frames[2]) == 8:
                await self._replay(router, frames[0], int.from_bytes(frames[2], "big"))

    async def _replay(self, router: zmq.asyncio.Socket, client: bytes, start: int) -> None:
        batches = [(seq, payload) for seq, payload in self._buffer if seq >= start]
        answers = [(self._topic, seq.to_bytes(8, "big"), payload) for seq, payload in batches]
        for answer in (*answers, (b"", END, b"")):
            give_up_at = time.monotonic() + STALLED_S
            while (problem := _send(router, [client, b"", *answer])) == errno.EAGAIN:
                if time.monotonic() > give_up_at:
                    break
                await asyncio.sleep(0.01)
            if problem:
                log.warning("a replay of KV events was given up: its reader has gone or stalls")
                return

    def _close_sockets(self) -> None:
        self._publisher.close(linger=0)
        if self._router is not None:
            self._router.close(linger=0)


def _attach(socket: zmq.asyncio.Socket, endpoint: str) -> str:
    """Bind or connect; the endpoint, with the port that was found."""
    socket.setsockopt(zmq.IPV6, "[" in endpoint)
    try:
        if not binds(endpoint):
            socket.connect(endpoint)
            return endpoint
        socket.bind(endpoint.removesuffix("0") + "*" if endpoint.endswith(":0") else endpoint)
    except zmq.ZMQError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{FLAG}: cannot use {endpoint}: {reason}") from None
    return cast(bytes, socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()


def _send(socket: zmq.asyncio.Socket, frames: list[bytes]) -> int:
    """0, or why it could not be queued (errno)."""
    sent = cast("asyncio.Future[Any]", socket.send_multipart(frames, flags=zmq.DONTWAIT))
    error = sent.exception()
    return (error.errno or errno.EIO) if isinstance(error, zmq.ZMQError) else 0
