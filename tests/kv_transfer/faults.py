"""Things that go wrong on purpose: a wire that stalls, copies that stall, a producer that lies."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from common.rpc import Listener
from common.wire import Decoder
from kv_transfer import messages as m
from kv_transfer.transport.base import Gate, Peer, Transport
from kv_transfer.transport.memory import MemoryTransport


class Relay:
    """A TCP hop between the two ends of a side channel."""

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self._target = (host.strip("[]"), int(port))
        self._is_open = {"up": asyncio.Event(), "down": asyncio.Event()}
        for direction in self._is_open.values():
            direction.set()
        self._tasks = set()
        self._writers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self, *directions):
        """Bytes `up` (to the producer) or `down` are kept back until `resume`."""
        for direction in directions:
            self._is_open[direction].clear()

    def cut(self):
        """Break every connection; new ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()

    def resume(self):
        for direction in self._is_open.values():
            direction.set()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        both = {writer, far_writer}
        self._writers |= both
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(
                    self._pump("up", reader, far_writer), self._pump("down", far_reader, writer)
                )
        finally:
            self._writers -= both
            for each in both:
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pump(self, direction, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._is_open[direction].wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class Stall:
    """`wrap` for `ends`: reads and publishing wait for `go`; the rest is the real transport."""

    def __init__(self, *, through_gate=True):
        self.go = threading.Event()
        self.reached = threading.Event()
        self.through_gate = through_gate

    def __call__(self, transport):
        return StallingTransport(transport, self)


class StallingTransport(Transport):
    def __init__(self, inner, stall):
        self._inner = inner
        self._stall = stall
        self.name = inner.name
        self.publishes = inner.publishes
        self.uses_hashes = inner.uses_hashes

    def describe(self):
        return self._inner.describe()

    def connect(self, description, num_blocks):
        return StallingPeer(self._inner.connect(description, num_blocks), self._stall)

    def publish(self, block_ids, hashes):
        self._stall.reached.set()
        assert self._stall.go.wait(10)
        self._inner.publish(block_ids, hashes)

    def close(self):
        self._inner.close()


class StallingPeer(Peer):
    def __init__(self, inner, stall):
        self._inner = inner
        self._stall = stall
        self.writes_through_gate = stall.through_gate

    def read(self, remote, local, hashes, gate):
        self._stall.reached.set()
        assert self._stall.go.wait(10)
        if self.writes_through_gate:
            self._inner.read(remote, local, hashes, gate)
        else:  # like hardware: cannot be called back
            self._inner.read(remote, local, hashes, Gate())

    def close(self):
        self._inner.close()


class FlippingTransport(MemoryTransport):
    """Each read flips one bit of what arrives, as a bad cable would."""

    checksums = True

    def connect(self, description, num_blocks):
        return FlippingPeer(super().connect(description, num_blocks), self.region)


class FlippingPeer(Peer):
    def __init__(self, inner, region):
        self._inner = inner
        self._target = region.blocks()

    def read(self, remote, local, hashes, gate):
        self._inner.read(remote, local, hashes, gate)
        self._target[local[-1], 17] ^= 4

    def close(self):
        self._inner.close()


class RogueProducer:
    """Answers each message type with whatever the test says."""

    def __init__(self, **answers):
        self._answers = answers
        self.heard = []
        decoder = Decoder(m.ToProducer, m.MAX_KV_MESSAGE_BYTES)
        self._listener = Listener(
            "tcp://127.0.0.1:0", decoder, self._on_message, max_bytes=m.MAX_KV_MESSAGE_BYTES
        )
        self.endpoint = self._listener.endpoint

    def _on_message(self, peer, message):
        self.heard.append(message)
        for answer in self._answers.get(type(message).__name__, lambda _: ())(message):
            self._listener.send(peer, answer)

    async def close(self):
        await self._listener.close()
