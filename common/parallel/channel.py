"""The line between rank 0 and another rank: typed messages over a pair of sockets.

A rank inherits its end, so nobody else can speak there, and when one of the two ends, the other
reads the end of the line at once. A step's inputs travel by broadcast (`step_inputs.py`); here goes
only their size.
"""

from __future__ import annotations

import socket
from typing import Generic, TypeVar

import msgspec

from common.config import ServeConfig

MAX_MESSAGE_BYTES = 1 << 20

T = TypeVar("T")


class ToRank(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class FromRank(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Job(ToRank, frozen=True):
    """The first message: who the rank is, and of what."""

    rank: int
    num_ranks: int
    leader_pid: int
    cores: tuple[int, ...]
    path: str  # of the model
    config: ServeConfig


class Measure(ToRank, frozen=True):
    """Say how much memory a KV cache could take; all ranks do it together."""


class MakeCache(ToRank, frozen=True):
    """The KV cache is `shared_fd` of rank 0, or, on a GPU, one's own."""

    num_blocks: int
    shared_fd: int | None


class Step(ToRank, frozen=True):
    """Take part in a forward pass; its inputs follow by broadcast."""

    num_tokens: int
    num_seqs: int
    table_width: int
    num_logits_rows: int
    max_query_len: int
    max_context_len: int


class Stop(ToRank, frozen=True):
    """End; nothing follows."""


class Here(FromRank, frozen=True):
    """About to meet the others."""


class Loaded(FromRank, frozen=True):
    """This rank's weights are in memory."""


class Measured(FromRank, frozen=True):
    available_bytes: int


class Ready(FromRank, frozen=True):
    """The KV cache is there: steps may come."""


class Failed(FromRank, frozen=True):
    """The rank cannot be; `message` is for the user."""

    message: str


class LineClosed(Exception):
    """The other end has gone."""


class Channel(Generic[T]):
    """One end. `T` is what can be received."""

    def __init__(self, line: socket.socket, receives: type[T]) -> None:
        self._line = line
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(receives)

    def send(self, message: ToRank | FromRank) -> None:
        """Raises LineClosed."""
        try:
            self._line.send(self._encoder.encode(message))
        except OSError as error:
            raise LineClosed(str(error)) from None

    def receive(self, timeout_s: float | None = None) -> T:
        """Raises LineClosed, or TimeoutError. None waits as long as the other end lives."""
        self._line.settimeout(timeout_s)
        try:
            data = self._line.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            raise
        except OSError as error:
            raise LineClosed(str(error)) from None
        finally:
            self._line.settimeout(None)
        if not data:
            raise LineClosed("the other end has gone")
        return self._decoder.decode(data)

    def close(self) -> None:
        self._line.close()


def make_line() -> tuple[socket.socket, socket.socket]:
    """Messages keep their borders."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
