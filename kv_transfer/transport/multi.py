"""Several connectors, tried in order for each pair of instances.

Both ends say what they have: the consumer's order counts, among those that the producer offers,
too. One that cannot connect, or whose read fails, is left alone for RETRY_S, and the read goes on
with the next; only when all have failed does it fail. Blocks that a failed read has written are
written again: it has ended by then.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from common.errors import LayoutMismatch, TransferError
from kv_transfer.transport.base import Gate, Peer, Stopped, Transport

log = logging.getLogger(__name__)

RETRY_S = 30.0


class Offered(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of a producer's connectors."""

    connector: str
    description: bytes


class Asked(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    connector: str
    request: bytes  # of that connector's own


class MultiTransport(Transport):
    name = "multi"

    def __init__(self, transports: Sequence[Transport]) -> None:
        self.transports = {transport.name: transport for transport in transports}
        self._publishers = [each for each in transports if each.publishes]
        self.publishes = len(self._publishers) == len(transports)  # else one can read at once
        self.publishes_behind = bool(self._publishers) and not self.publishes
        for transport in self._publishers:
            transport.is_behind = self.publishes_behind
        self.polls = any(transport.polls for transport in transports)
        self.checksums = any(transport.checksums for transport in transports)
        self.uses_hashes = any(transport.uses_hashes for transport in transports)
        self.serves = any(transport.serves for transport in transports)
        self._lock = threading.Lock()
        self._failures = dict.fromkeys(self.transports, 0)

    def describe(self) -> bytes:
        offered = [Offered(name, each.describe()) for name, each in self.transports.items()]
        return msgspec.msgpack.encode(offered)

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        """Nothing is connected yet: that is part of the first read, which may have to fall through
        anyway."""
        try:
            offered = msgspec.msgpack.decode(description, type=list[Offered])
        except msgspec.MsgspecError:
            raise TransferError("the producer's list of connectors is malformed") from None
        theirs = {each.connector: each.description for each in offered}
        routes = [
            _Route(name, transport, theirs[name])
            for name, transport in self.transports.items()
            if name in theirs
        ]
        if not routes:
            raise LayoutMismatch(
                f"no connector in common: {', '.join(theirs)} there, "
                f"{', '.join(self.transports)} here"
            )
        return MultiPeer(self, routes, num_blocks)

    def publish(self, block_ids: Sequence[int], hashes: Sequence[str]) -> None:
        """Fails only if it leaves no way to read the blocks."""
        for transport in self._publishers:
            try:
                transport.publish(block_ids, hashes)
            except TransferError as error:
                if len(self.transports) == 1:
                    raise
                self.note_failure(transport.name, error)

    def poll(self) -> None:
        for transport in self.transports.values():
            if transport.polls:
                transport.poll()

    def serve(self, request: bytes, block_ids: Sequence[int]) -> None:
        try:
            asked = msgspec.msgpack.decode(request, type=Asked)
        except msgspec.MsgspecError:
            raise TransferError("the consumer's request is malformed") from None
        transport = self.transports.get(asked.connector)
        if transport is None or not transport.serves:
            raise TransferError("the consumer asks for a connector that is not here")
        transport.serve(asked.request, block_ids)

    def note_failure(self, name: str, error: TransferError) -> None:
        with self._lock:
            self._failures[name] += 1
        log.warning("connector %s failed, trying the next: %s", name, error.message)

    def counters(self) -> dict[str, int]:
        found = {f"kv_fallback_{name}": count for name, count in self._failures.items()}
        for transport in self.transports.values():
            found |= transport.counters()
        return found

    def close(self) -> None:
        for transport in self.transports.values():
            transport.close()


@dataclass(slots=True)
class _Route:
    """One connector to one producer."""

    name: str
    transport: Transport
    description: bytes
    peer: Peer | None = None
    failed_at: float = -math.inf


class MultiPeer(Peer):
    writes_through_gate = False  # some do not; which one reads is not known beforehand

    def __init__(self, multi: MultiTransport, routes: list[_Route], num_blocks: int) -> None:
        self._multi = multi
        self._routes = routes
        self._num_blocks = num_blocks
        self._lock = threading.Lock()  # around connecting
        self._is_closed = False

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        error = TransferError("no connector is left to try")
        for route in self._in_order():
            try:
                labelled = _Labelled(gate, route.name)
                self._connected(route).read(remote, local, hashes, labelled)
                route.failed_at = -math.inf
                return
            except Stopped:
                raise
            except TransferError as failed:
                error = failed
                if gate.is_closed:
                    raise
                route.failed_at = time.monotonic()
                self._multi.note_failure(route.name, failed)
                gate.landed(0)
        raise error

    def _in_order(self) -> list[_Route]:
        """Those that failed lately come last: better they than none."""
        now = time.monotonic()
        return sorted(self._routes, key=lambda route: now - route.failed_at < RETRY_S)

    def _connected(self, route: _Route) -> Peer:
        with self._lock:
            if self._is_closed:
                raise Stopped("the connector is closing")
            if route.peer is None:
                route.peer = route.transport.connect(route.description, self._num_blocks)
            return route.peer

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for route in self._routes:
                if route.peer is not None:
                    route.peer.close()


class _Labelled(Gate):
    """The gate of a read, whose requests say which connector they are for."""

    def __init__(self, gate: Gate, connector: str) -> None:
        super().__init__()
        self._gate = gate
        self._connector = connector

    @property
    def is_closed(self) -> bool:
        return self._gate.is_closed

    @contextmanager
    def write(self) -> Iterator[None]:
        with self._gate.write():
            yield

    def landed(self, num_blocks: int) -> None:
        self._gate.landed(num_blocks)

    def ask(self, request: bytes, block_ids: Sequence[int]) -> None:
        self._gate.ask(msgspec.msgpack.encode(Asked(self._connector, request)), block_ids)
