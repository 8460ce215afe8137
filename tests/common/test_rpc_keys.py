"""Links under a cluster key: who holds it gets through, nobody else does, and honest peers never
wait for strangers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from typing import Any

import pytest
import zmq

from common import cluster_key
from common.addresses import announced_host, host_of, is_loopback, tcp_endpoint
from common.cluster_key import derive
from common.doorkeeper import zap_reply
from common.errors import ConfigError
from common.rpc import Link, Listener
from common.wire import Abort, Decoder, Hello, ToInstance

KEY = derive("a shared secret of the test")
OTHER = derive("another secret, same length")
MAX = 1 << 16


class Echo:
    """A listener that sends every message back, and the ends that talk to it."""

    def __init__(self, key, bind="tcp://127.0.0.1:0"):
        self.listener = Listener(bind, Decoder(ToInstance), self._answer, max_bytes=MAX, key=key)
        self._links: list[Link] = []

    def _answer(self, peer, message):
        self.listener.send(peer, message)

    def link(self, key):
        heard: asyncio.Queue[Any] = asyncio.Queue()
        made = Link(
            self.listener.endpoint, Decoder(ToInstance), heard.put_nowait, max_bytes=MAX, key=key
        )
        self._links.append(made)
        return made, heard

    async def close(self):
        await asyncio.gather(*(link.close(0) for link in self._links))
        await self.listener.close()


def with_echo(key, scenario):
    async def main():
        echo = Echo(key)
        try:
            await scenario(echo)
        finally:
            await echo.close()

    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def round_trip(echo, key, timeout_s=2.0):
    link, heard = echo.link(key)
    link.send(Hello("p"))
    return await asyncio.wait_for(heard.get(), timeout_s)


@pytest.mark.parametrize("key", [None, KEY])
def test_the_same_key_gets_through(key):
    async def scenario(echo):
        assert await round_trip(echo, key) == Hello("p")
        assert echo.listener.denied == 0

    with_echo(key, scenario)


@pytest.mark.parametrize(("held", "shown"), [(KEY, None), (KEY, OTHER), (None, KEY)])
def test_a_wrong_or_missing_key_gets_nothing(held, shown):
    async def scenario(echo):
        with pytest.raises(asyncio.TimeoutError):
            await round_trip(echo, shown, 0.7)
        assert await round_trip(echo, held) == Hello("p")
        assert (echo.listener.denied > 0) == (held is not None)

    with_echo(held, scenario)


def test_the_listeners_key_alone_does_not_open_the_door():
    """Who has seen the listener's public key still needs the client's secret one."""

    async def scenario(echo):
        mine = derive("a key of the attacker's own")
        half = cluster_key.ClusterKey(KEY.listener, mine.link, "", b"", b"")
        with pytest.raises(asyncio.TimeoutError):
            await round_trip(echo, half, 0.7)
        await until(lambda: echo.listener.denied > 0)
        assert await round_trip(echo, KEY) == Hello("p")

    with_echo(KEY, scenario)


def test_refusals_are_logged_once_a_minute(caplog):
    async def scenario(echo):
        echo.link(OTHER)
        await until(lambda: echo.listener.denied >= 3)

    with_echo(KEY, scenario)
    said = [record.message for record in caplog.records]
    assert sum("takes the right cluster key" in line for line in said) == 1
    assert sum("no handshake with" in line for line in said) == 1


def test_what_travels_is_not_readable():
    """Through a relay that keeps every byte."""
    seen = bytearray()

    async def scenario(echo):
        host, port = echo.listener.endpoint.removeprefix("tcp://").split(":")

        async def pump(reader, writer):
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    seen.extend(data)
                    writer.write(data)
            writer.close()

        async def relay(reader, writer):
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, back), pump(there, writer))

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        between = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        heard: asyncio.Queue[Any] = asyncio.Queue()
        link = Link(between, Decoder(ToInstance), heard.put_nowait, max_bytes=MAX, key=KEY)
        link.send(Abort("a request that nobody may read"))
        assert await asyncio.wait_for(heard.get(), 5) == Abort("a request that nobody may read")
        await link.close(0)
        server.close()

    with_echo(KEY, scenario)
    assert len(seen) > 200
    assert b"nobody may read" not in seen


def test_bytes_that_are_not_zmq_are_survived():
    async def scenario(echo):
        host, port = echo.listener.endpoint.removeprefix("tcp://").split(":")
        strangers = [socket.create_connection((host, int(port))) for _ in range(40)]
        for number, stranger in enumerate(strangers[:30]):
            stranger.sendall(bytes([number]) * 300)
        assert await round_trip(echo, KEY) == Hello("p")
        for stranger in strangers:
            stranger.close()
        await until(lambda: echo.listener.denied >= 10, 10)
        assert await round_trip(echo, KEY) == Hello("p")

    with_echo(KEY, scenario)


HAMMER = """
import sys, time, zmq
sys.path.insert(0, sys.argv[3])
from common.cluster_key import derive
key, context = derive("another secret, same length"), zmq.Context()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    sockets = [context.socket(zmq.DEALER) for _ in range(50)]
    for one in sockets:
        one.setsockopt(zmq.CURVE_SERVERKEY, key.listener.public)
        one.setsockopt(zmq.CURVE_PUBLICKEY, key.link.public)
        one.setsockopt(zmq.CURVE_SECRETKEY, key.link.secret)
        one.setsockopt(zmq.RECONNECT_IVL, 1)
        one.setsockopt(zmq.LINGER, 0)
        one.connect(sys.argv[1])
    time.sleep(0.3)
    for one in sockets:
        one.close()
"""


def test_honest_peers_are_served_during_a_flood_of_handshakes(pytestconfig):
    async def scenario(echo):
        root = str(pytestconfig.rootpath)
        flood = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HAMMER, echo.listener.endpoint, "20", root
        )
        try:
            await until(lambda: echo.listener.denied > 300, 15)
            began = time.monotonic()
            for _ in range(3):
                assert await round_trip(echo, KEY) == Hello("p")
            assert time.monotonic() - began < 5.5
        finally:
            flood.kill()
            await flood.wait()

    with_echo(KEY, scenario)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.7", "eth0", "example.org", "[::]"])
def test_an_open_bind_without_a_key_is_refused(host):
    async def main():
        with pytest.raises(ConfigError, match="XPYD_CLUSTER_KEY"):
            Echo(None, f"tcp://{host}:0")

    asyncio.run(main())


def test_a_taken_port_is_told_and_nothing_is_left(recwarn):
    async def scenario(echo):
        with pytest.raises(zmq.ZMQError):
            Echo(KEY, echo.listener.endpoint)

    with_echo(KEY, scenario)
    assert not recwarn.list


def test_an_announced_host_replaces_the_bound_one():
    async def main():
        listener = Listener(
            "tcp://0.0.0.0:0",
            Decoder(ToInstance),
            lambda peer, message: None,
            max_bytes=MAX,
            key=KEY,
            announce_host="fd00::7",
        )
        assert listener.endpoint.startswith("tcp://[fd00::7]:")
        await listener.close()

    asyncio.run(main())


# --- the pure parts ------------------------------------------------------------------------------


def test_everything_is_derived_and_nothing_repeats():
    again = derive("  a shared secret of the test\n")
    assert again == KEY
    parts = [*vars_of(KEY), *vars_of(OTHER)]
    assert len(set(parts)) == len(parts)
    assert zmq.curve_public(KEY.link.secret) == KEY.link.public
    assert "secret" not in repr(KEY)


def vars_of(key):
    pairs = (key.listener, key.link)
    return [key.http_token, *(part for pair in pairs for part in (pair.public, pair.secret))]


@pytest.mark.parametrize("text", ["", "short", " " * 40])
def test_a_key_that_is_no_secret_is_refused(text):
    with pytest.raises(ConfigError, match="at least 16"):
        derive(text)


def test_keys_come_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "key"
    file.write_text("a shared secret of the test\n")
    assert cluster_key.load(str(file), "") == KEY
    assert cluster_key.load("", "a shared secret of the test") == KEY
    assert cluster_key.load("", "") is None
    assert len(cluster_key.generate()) >= 32
    file.write_text("\n")
    with pytest.raises(ConfigError, match="--cluster-key-file"):
        cluster_key.load(str(file), "")
    with pytest.raises(ConfigError, match="No such file"):
        cluster_key.load(str(tmp_path / "none"), "")


ALLOWED = b"k" * 32
ASKED = [b"1.0", b"7", b"xpyd", b"127.0.0.1", b"id", b"CURVE", ALLOWED]


def test_zap_lets_in_exactly_the_clients_key():
    assert zap_reply(ASKED, ALLOWED) == [b"1.0", b"7", b"200", b"OK", b"", b""]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"1.0"],
        ASKED[:6],
        [*ASKED, b"more"],
        [*ASKED[:6], b"K" * 32],
        [*ASKED[:5], b"NULL"],
        [*ASKED[:5], b"PLAIN", ALLOWED],
        [*ASKED[:2], b"other", *ASKED[3:]],
        [b"2.0", *ASKED[1:]],
    ],
)
def test_zap_refuses_everything_else(frames):
    assert zap_reply(frames, ALLOWED)[2] == b"400"


def test_loopback_and_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("", "*", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.org")))
    assert host_of(tcp_endpoint("::1", 5)) == "::1"


def test_a_wildcard_announces_the_outgoing_address():
    assert announced_host("0.0.0.0", "", "127.0.0.1") == "127.0.0.1"
    with pytest.raises(ConfigError, match="--advertise-host"):
        announced_host("0.0.0.0", "", "no.such.name.invalid")
    assert announced_host("10.0.0.5", "", "127.0.0.1") == "10.0.0.5"
    assert announced_host("0.0.0.0", "node7", "127.0.0.1") == "node7"
