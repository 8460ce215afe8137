"""What a transport must do: bytes of blocks from the producer's region into the consumer's.

It knows neither leases nor messages. One object serves both ends; a process uses the face it needs.
All methods may be called from a worker thread, and block at most as their docstrings say.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from common.errors import TransferError


class Stopped(TransferError):
    """The gate was closed while blocks were being read: nobody waits for the result any more."""


class Gate:
    """What a copying thread has of the fetch that it copies for: leave to write, until the gate is
    closed; somebody to tell what has arrived; a way to ask the producer.

    After `close` no further byte is written.
    """

    def __init__(self, ask: Callable[[bytes, Sequence[int]], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._ask = ask
        self._on_landed: Callable[[int], None] | None = None

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

    def watch(self, on_landed: Callable[[int], None]) -> None:
        """Have `landed` tell this, in the copying thread."""
        self._on_landed = on_landed

    def landed(self, num_blocks: int) -> None:
        """The first `num_blocks` of those to be read are here: they may be looked at meanwhile. 0:
        none of what was here counts, all of it is written anew."""
        if self._on_landed is not None:
            self._on_landed(num_blocks)

    def ask(self, request: bytes, block_ids: Sequence[int]) -> None:
        """Have the producer's `Transport.serve` called with this, if the lease stands and covers
        the blocks. Returns at once, from any thread. Raises TransferError if nobody can be asked.
        """
        if self._ask is None:
            raise TransferError("there is no producer to ask")
        self._ask(request, block_ids)

    def close(self) -> None:
        """Waits for the write in progress: a chunk, well under a millisecond."""
        with self._lock:
            self._is_closed = True


class Peer(ABC):
    """A producer's region, as one consumer sees it."""

    compares = True  # checksums, where the producer has made them
    only_copies = False  # `read` is a copy in memory: a small one needs no thread of its own
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
    publishes_behind = False  # `publish` is to run, but offers do not wait for it
    polls = False  # `poll` must run while consumers read
    is_behind = False  # blocks may be offered before `publish` has run: readers wait a while
    checksums = False  # a checksum of each block travels with its name, compared after the copy
    always_compares = False  # even where no byte leaves the machine
    uses_hashes = False  # blocks are found by hash: `Ready` carries them
    serves = False  # reads are not one-sided: peers ask (`Gate.ask`), and `serve` answers

    @abstractmethod
    def describe(self) -> bytes:
        """Producer: what `connect` on the other side needs. Raises ConfigError."""

    @abstractmethod
    def connect(self, description: bytes, num_blocks: int) -> Peer:
        """Consumer: open the producer's pool of `num_blocks` blocks, each as large as ours.

        Blocks some milliseconds. Raises TransferError; LayoutMismatch if this can never work.
        """

    # A producer whose memory is simply there has nothing to do in these three.

    def publish(self, block_ids: Sequence[int], hashes: Sequence[str]) -> None:  # noqa: B027
        """Producer: make the blocks readable elsewhere. May block long. Raises TransferError."""

    def poll(self) -> None:  # noqa: B027
        """Producer: let reads by consumers advance. Takes microseconds."""

    def serve(self, request: bytes, block_ids: Sequence[int]) -> None:  # noqa: B027
        """Producer: send a consumer what it asked for; returns at once.

        `block_ids` are those asked for, in order, under a lease that stands; none of them if it
        does not cover them all. Raises TransferError if the request makes no sense.
        """

    def counters(self) -> dict[str, int]:
        """Plain numbers for `/metrics` that only grow; always the same names."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""
