"""How a copy is carried out: whole blocks straight into ours, where both sides' are alike, or by
way of a landing place of the producer's block size, from where the tokens go on into ours.

Both run in worker threads, small copies aside, and block until the copy has been made or its gate
has closed.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import LayoutMismatch
from kv_transfer.block_check import BlockCheck
from kv_transfer.claim import Copy
from kv_transfer.region import KVRegion
from kv_transfer.token_map import Piece, whole_blocks
from kv_transfer.transport.base import Gate, Peer, Stopped, Transport

STAGING_BYTES = 8 << 20  # of a landing place, or one block if that is more
LOCK_POLL_S = 0.05
BRIEF_BYTES = 512 << 10  # some 50 us; a thread and back takes 150


class Reader(Protocol):
    @property
    def writes_through_gate(self) -> bool:
        """Does nothing reach our blocks any more once the gate has closed?"""
        ...

    def is_brief(self, copy: Copy) -> bool:
        """Does it take less than handing it to a thread?"""
        ...

    def read(self, copy: Copy, gate: Gate, checker: ThreadPoolExecutor) -> None:
        """`checker`: where checksums are compared while the copy goes on.

        When this returns or raises, nothing is written to our blocks any more, unless bytes are
        still on their way and `writes_through_gate` is false. Raises TransferError kinds.
        """
        ...

    def close(self) -> None: ...


class DirectReader:
    def __init__(self, peer: Peer, ours: KVRegion) -> None:
        self._peer = peer
        self._ours = ours

    @property
    def writes_through_gate(self) -> bool:
        return self._peer.writes_through_gate

    def is_brief(self, copy: Copy) -> bool:
        num_bytes = len(copy.remote) * self._ours.block_bytes
        return self._peer.only_copies and num_bytes <= BRIEF_BYTES and not copy.checksums

    def read(self, copy: Copy, gate: Gate, checker: ThreadPoolExecutor) -> None:
        local = whole_blocks(copy.pieces)
        checksums = copy.checksums if self._peer.compares else ()
        check = BlockCheck(self._ours, local, checksums, checker)
        gate.watch(check.landed)
        self._peer.read(copy.remote, local, copy.hashes, gate)
        check.finish()

    def close(self) -> None:
        self._peer.close()


class StagedReader:
    """One copy at a time: there is one landing place per producer."""

    writes_through_gate = True  # what lands late, lands in the landing place

    def __init__(
        self,
        ours: KVRegion,
        block_size: int,
        transport: Callable[[KVRegion], Transport],
        description: bytes,
        num_blocks: int,
    ) -> None:
        """`transport` makes one that reads into a region of its own; description, num_blocks: of
        the producer, whose blocks have `block_size` tokens. Raises TransferError kinds."""
        if ours.device is not None:
            raise LayoutMismatch("block_size differs, and a KV pool on a GPU is not converted")
        if ours.block_bytes != ours.num_rows * ours.block_size * ours.token_bytes:
            raise LayoutMismatch("block_size differs, and blocks here are not made of tokens")
        self._ours = _by_token(ours)
        block_bytes = ours.num_rows * block_size * ours.token_bytes
        self._num_staged = max(1, STAGING_BYTES // block_bytes)
        memory = np.frombuffer(mmap.mmap(-1, self._num_staged * block_bytes), np.uint8)
        self._memory = memory  # keeps the mapping
        self._staging = KVRegion(
            memory.ctypes.data,
            self._num_staged,
            block_bytes,
            num_rows=ours.num_rows,
            block_size=block_size,
        )
        self._staged = _by_token(self._staging)
        self._transport = transport(self._staging)
        self._lock = threading.Lock()
        try:
            self._peer = self._transport.connect(description, num_blocks)
        except BaseException:
            self._transport.close()
            raise

    def is_brief(self, copy: Copy) -> bool:
        return False

    def read(self, copy: Copy, gate: Gate, checker: ThreadPoolExecutor) -> None:
        while not self._lock.acquire(timeout=LOCK_POLL_S):
            if gate.is_closed:
                raise Stopped("the read was stopped")
        try:
            for start in range(0, len(copy.remote), self._num_staged):
                self._read_some(copy, start, gate, checker)
        finally:
            self._lock.release()

    def _read_some(self, copy: Copy, start: int, gate: Gate, checker: ThreadPoolExecutor) -> None:
        stop = min(start + self._num_staged, len(copy.remote))
        landing = range(stop - start)
        checksums = copy.checksums[start:stop] if self._peer.compares else ()
        check = BlockCheck(self._staging, landing, checksums, checker)
        gate.watch(check.landed)
        self._peer.read(copy.remote[start:stop], landing, copy.hashes[start:stop], gate)
        check.finish()
        for piece in copy.pieces:
            if start <= piece.source < stop:
                with gate.write():
                    self._place(piece, start)

    def _place(self, piece: Piece, start: int) -> None:
        """Both views: [blocks, rows, block_size, token_bytes]."""
        target = slice(piece.target_at, piece.target_at + piece.num_tokens)
        source = slice(piece.source_at, piece.source_at + piece.num_tokens)
        staged = self._staged[piece.source - start, :, source]
        self._ours[piece.target, :, target] = staged

    def close(self) -> None:
        self._peer.close()
        self._transport.close()


def _by_token(region: KVRegion) -> NDArray[np.uint8]:
    shape = (region.num_blocks, region.num_rows, region.block_size, region.token_bytes)
    return region.blocks().reshape(shape)
