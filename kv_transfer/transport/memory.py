"""Both ends in one process: the reference that other transports are tested against."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Sequence

from common.errors import LayoutMismatch
from kv_transfer.region import CHUNK_BYTES, KVRegion, runs
from kv_transfer.transport.base import Gate, Peer, Transport

# The producers of this process, by a token that travels as their description.
_transports: weakref.WeakValueDictionary[bytes, MemoryTransport] = weakref.WeakValueDictionary()


class MemoryTransport(Transport):
    name = "memory"

    def __init__(self, region: KVRegion) -> None:
        self.region = region
        self._token = secrets.token_bytes(16)
        _transports[self._token] = self

    def describe(self) -> bytes:
        return self._token

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        producer = _transports.get(description)
        if producer is None:
            raise LayoutMismatch("connector memory works only inside one process")
        if num_blocks > producer.region.num_blocks:
            raise LayoutMismatch("the producer's pool is smaller than it says")
        return MemoryPeer(producer, self.region)

    def close(self) -> None:
        _transports.pop(self._token, None)


class MemoryPeer(Peer):
    def __init__(self, producer: MemoryTransport, region: KVRegion) -> None:
        self._producer: MemoryTransport | None = producer
        self._source = producer.region.blocks()
        self._target = region.blocks()
        self._max_blocks = max(1, CHUNK_BYTES // region.block_bytes)

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        for source, target, count in runs(remote, local, self._max_blocks):
            with gate.write():
                self._target[target : target + count] = self._source[source : source + count]

    def close(self) -> None:
        self._producer = None
