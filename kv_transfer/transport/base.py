"""What a transport must do: bytes of blocks from the producer's region into the consumer's.

It knows neither leases nor messages. One object serves both ends; a process uses the face it needs.
All methods may be called from a worker thread, and block at most as their docstrings say.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from common.errors import TransferError


class Stopped(TransferError):
    """The gate was closed while blocks were being read: nobody waits for the result any more."""


class Gate:
    """Lets a copying thread write until it is closed: after `close` no further byte is written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the gate open for one short write. Raises Stopped if it is closed."""
        with self._lock:
            if self._is_closed:
                raise Stopped("the read was stopped")
            yield

    def close(self) -> None:
        """Waits for the write in progress: a chunk, well under a millisecond."""
        with self._lock:
            self._is_closed = True


class Peer(ABC):
    """A producer's region, as one consumer sees it."""

    writes_through_gate = True  # False: bytes may land after the gate has closed, until `read` ends

    @abstractmethod
    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        """Copy the producer's blocks `remote` into `local`; blocks until done or the gate closes.

        The caller has checked `remote` and `local` against the pools' bounds. Raises TransferError.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the producer. A `read` still running keeps what it needs."""


class Transport(ABC):
    name: str
    publishes = False  # `publish` must run before blocks are offered
    polls = False  # `poll` must run while consumers read
    checksums = False  # a CRC-32 of each block travels with its name and is compared after the copy
    uses_hashes = False  # blocks are found by hash: `Ready` carries them

    @abstractmethod
    def describe(self) -> bytes:
        """Producer: what `connect` on the other side needs. Raises ConfigError."""

    @abstractmethod
    def connect(self, description: bytes, num_blocks: int) -> Peer:
        """Consumer: open the producer's pool of `num_blocks` blocks, each as large as ours.

        Blocks some milliseconds. Raises TransferError; LayoutMismatch if this can never work.
        """

    # A producer whose memory is simply there has nothing to do in these two.

    def publish(self, block_ids: Sequence[int], hashes: Sequence[str]) -> None:  # noqa: B027
        """Producer: make the blocks readable elsewhere. May block long. Raises TransferError."""

    def poll(self) -> None:  # noqa: B027
        """Producer: let reads by consumers advance. Takes microseconds."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""
