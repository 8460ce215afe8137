"""One ZeroMQ socket in the event loop: frames to a callback as they come, sending at once or never.

No task and no future stands between the socket and the callback: a message is handled in the turn
of the loop in which it is seen. Knows no message and no error of a handler: `deliver` must not
raise.

libzmq's descriptor only says that something happened since its events were last read, so whoever
reads or sends has to look again before it sleeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import zmq
import zmq.asyncio

BURST = 64  # messages handled before the event loop gets its turn: a flood starves nobody


def plain_socket(context: zmq.asyncio.Context, kind: int) -> zmq.Socket[bytes]:
    """For an `Inbox`: it blocks, and nobody lets it."""
    socket: zmq.Socket[bytes] = cast(Any, context).socket(kind, socket_class=zmq.Socket)
    return socket


class Inbox:
    """`close()` before the socket, which stays the caller's."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        deliver: Callable[[list[bytes]], None],
        pause_s: float = 0.0,
    ) -> None:
        """`pause_s`: rest after each burst, however long it took to come."""
        self._socket = socket
        self._deliver = deliver
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()
        self._fd = socket.FD
        self._left = BURST  # until the next rest
        self._is_draining = False
        self._next: asyncio.Handle | None = None  # a drain that is due
        self._is_open = True
        self._loop.add_reader(self._fd, self._drain)
        self._next = self._loop.call_soon(self._drain)  # what came before we looked

    def send(self, frames: Sequence[bytes]) -> bool:
        """Queue one message; False if its peer has gone or does not read."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
            return True
        except zmq.ZMQError:
            return False
        finally:
            if self._next is None and not self._is_draining and self._has_mail():
                self._next = self._loop.call_soon(self._drain)

    def close(self) -> None:
        self._is_open = False
        self._loop.remove_reader(self._fd)
        if self._next is not None:
            self._next.cancel()

    def _has_mail(self) -> bool:
        return bool(cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _drain(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._is_draining = True
        try:
            while self._is_open and self._left:
                self._deliver(self._socket.recv_multipart(zmq.DONTWAIT))
                self._left -= 1
        except zmq.Again:
            return
        finally:
            self._is_draining = False
        if self._is_open:
            self._rest()

    def _rest(self) -> None:
        """Deaf until then: a descriptor that nobody reads would wake the loop all the time."""
        self._left = BURST
        self._loop.remove_reader(self._fd)
        self._next = self._loop.call_later(self._pause_s, self._go_on)

    def _go_on(self) -> None:
        self._next = None
        self._loop.add_reader(self._fd, self._drain)
        self._drain()
