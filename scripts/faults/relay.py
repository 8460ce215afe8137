"""A TCP relay that can be cut, silenced and slowed: a bad network where the kernel offers none."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket


class Relay:
    """From `host:port` to `target`, both ways. Runs in the caller's event loop.

    `cut()`: connections break and new ones are refused. `silence()`: they stay, and nothing comes
    through, or only towards the target. `slow(...)`: each direction of each connection has that
    rate and delay. `mend()` undoes all three.
    """

    def __init__(self, host: str, port: int, target: tuple[str, int]) -> None:
        self.host, self.port, self.target = host, port, target
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_target, self._from_target = asyncio.Event(), asyncio.Event()
        self._to_target.set()
        self._from_target.set()
        self._bytes_per_s = math.inf
        self._delay_s = 0.0

    async def start(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port))
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def cut(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await asyncio.sleep(0)  # every task has begun, and gives back what it was given
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # and every socket is closed

    def silence(self, *, one_way: bool = False) -> None:
        """`one_way`: what goes towards the target still arrives there."""
        self._from_target.clear()
        if not one_way:
            self._to_target.clear()

    def slow(self, bytes_per_s: float = math.inf, delay_s: float = 0.0) -> None:
        self._bytes_per_s, self._delay_s = bytes_per_s, delay_s

    async def mend(self) -> None:
        self.slow()
        self._from_target.set()
        self._to_target.set()
        await self.start()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # gone again
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            task = asyncio.ensure_future(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(*self.target)
            self._writers.add(there)
            directions = [
                asyncio.ensure_future(self._pump(reader, there, self._to_target)),
                asyncio.ensure_future(self._pump(back, writer, self._from_target)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16 << 10):
                if self._delay_s or self._bytes_per_s < math.inf:
                    await asyncio.sleep(self._delay_s + len(data) / self._bytes_per_s)
                await is_open.wait()
                writer.write(data)
                await writer.drain()
