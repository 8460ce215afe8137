"""Links that break on demand: real sockets, an instance that is an echo server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import pytest

from scripts.faults.links import Links, Order, give_order
from tests.ports import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.0/8")
HOST = "127.0.0.77"
END_S = 30.0


async def echo(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(1024):
            writer.write(data)
            await writer.drain()
    writer.close()


class World:
    """One echo server as `decode-0` behind its link, and one as the registry."""

    def __init__(self, directory):
        self.control = directory / "control"
        self.port = free_port()
        self.registry = free_port(), free_port()
        self.links = Links({"decode-0": HOST}, self.registry, self.ask)
        self.servers: list[asyncio.Server] = []

    async def ask(self, name):
        return {"endpoint": f"tcp://{HOST}:{self.port}", "side_channel": ""}

    async def serve(self, port):
        self.servers.append(await asyncio.start_server(echo, "127.0.0.1", port))

    async def answers(self, host, port):
        """Does somebody behind that address say what was said, within a moment?"""
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        try:
            writer.write(b"hello")
            return await asyncio.wait_for(reader.read(5), 0.5) == b"hello"
        except (OSError, asyncio.TimeoutError):
            return False
        finally:
            writer.transport.abort()

    async def becomes(self, wanted, host=HOST, port=None):
        deadline = time.monotonic() + END_S
        while await self.answers(host, port or self.port) is not wanted:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def order(self, link, do, for_s=0.0, **more):
        await give_order(str(self.control), Order(link, do, for_s, **more), END_S)


def run(directory, scenario):
    async def around():
        world = World(directory)
        await world.serve(world.port)
        await world.serve(world.registry[1])
        await world.links.start(world.control)
        try:
            await world.becomes(True)
            await scenario(world)
        finally:
            await world.links.close()
            for server in world.servers:
                server.close()

    asyncio.run(around())


@pytest.mark.parametrize("do", ["cut", "silence"])
def test_a_broken_link_mends_itself_in_time_or_when_told(do, tmp_path):
    async def scenario(world):
        await world.order("decode-0", do, 1.0)
        assert not await world.answers(HOST, world.port)
        await world.becomes(True)
        await world.order("decode-0", do, 600.0)
        assert not await world.answers(HOST, world.port)
        await world.order("decode-0", "mend")
        assert await world.answers(HOST, world.port)

    run(tmp_path, scenario)


def test_a_slow_link_answers_late(tmp_path):
    async def scenario(world):
        await world.order("decode-0", "slow", 600.0, delay_s=2.0)
        assert not await world.answers(HOST, world.port)
        await world.order("decode-0", "slow", 600.0, delay_s=0.01)
        assert await world.answers(HOST, world.port)

    run(tmp_path, scenario)


def test_a_restart_at_other_ports_is_followed_and_what_is_broken_stays_broken(tmp_path):
    async def scenario(world):
        old, world.port = world.port, free_port()
        await world.serve(world.port)
        await world.becomes(True)
        await world.becomes(False, HOST, old)
        await world.order("decode-0", "cut", 600.0)
        world.port = free_port()
        await world.serve(world.port)
        await asyncio.sleep(1.0)  # longer than it takes to follow
        assert not await world.answers(HOST, world.port)
        await world.order("decode-0", "mend")
        await world.becomes(True)

    run(tmp_path, scenario)


def test_the_registry_has_a_link_of_its_own(tmp_path):
    async def scenario(world):
        told = world.registry[0]
        assert await world.answers("127.0.0.1", told)
        await world.order("registry", "cut", 600.0)
        assert not await world.answers("127.0.0.1", told)
        assert await world.answers(HOST, world.port)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        (Order("decode-9", "cut", 1.0), "no link 'decode-9'; there are decode-0, registry"),
        (Order("decode-0", "cut", 1e6), "for_s"),
        (Order("decode-0", "slow", 1.0, bytes_per_s=0.0), "bytes_per_s"),
        (Order("decode-0", "explode", 1.0), "explode"),  # type: ignore[arg-type]
    ],
)
def test_orders_that_make_no_sense_are_refused(order, complaint, tmp_path):
    async def scenario(world):
        with pytest.raises(ValueError, match=complaint):
            await give_order(str(world.control), order, END_S)
        assert await world.answers(HOST, world.port)

    run(tmp_path, scenario)


def test_what_is_no_order_is_answered_and_harms_nobody(tmp_path):
    async def scenario(world):
        for line in (b"{}\n", b"\xff\n", b"[]\n", b"x" * 100_000 + b"\n"):
            reader, writer = await asyncio.open_unix_connection(str(world.control))
            with contextlib.suppress(OSError):
                writer.write(line)
                await writer.drain()
                answer = await asyncio.wait_for(reader.readline(), END_S)
                assert b"error" in answer or not answer
            writer.transport.abort()
        await world.order("decode-0", "cut", 600.0)
        assert not await world.answers(HOST, world.port)

    run(tmp_path, scenario)
