"""What strangers can do to the registry port: be counted and ignored."""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
import time
from typing import Any

import msgspec
import pytest
import zmq
from msgspec.structs import replace

from benchmarks.standin_instance import Standin, StandinInstance
from common.wire import MAX_REGISTRY_MESSAGE_BYTES, InstanceInfo, Register, encode
from proxy.membership import Membership
from proxy.relay import Fleet
from tests.proxy.fleet_of_standins import FAST, answer, collect, make_request, num_ready, until

INFO = InstanceInfo(
    *("i", "1", "both", "http://h:1", "tcp://127.0.0.1:9", "", "m", "", 64, "f", "", 8, 4)
)
FLOOD = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        socket.send(b"\\x93garbage" * 10, zmq.DONTWAIT)
    except zmq.Again:
        time.sleep(0.001)
"""


@pytest.fixture
def fleet_at():
    """Runs `scenario(fleet, registry address)`."""

    def run(scenario):
        async def main():
            fleet = Fleet(Membership(timing=FAST))
            fleet.start("tcp://127.0.0.1:0")
            try:
                assert fleet.links.registry is not None
                await scenario(fleet, fleet.links.registry.endpoint)
            finally:
                await fleet.close()

        asyncio.run(asyncio.wait_for(main(), 30))

    return run


async def send(endpoint, *messages):
    """Each message a list of frames, from one peer."""
    peer: Any = zmq.Context.instance().socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 1000)
    peer.connect(endpoint)
    for frames in messages:
        peer.send_multipart(frames)
    peer.close()


def registration(**changes):
    return encode(Register(replace(INFO, **changes)))


GARBAGE = [
    [b""],
    [b"\x00"],
    [b"\xc1" * 100],
    [b'{"type": "P", "http_address": "127.0.0.1:1"}'],
    [pickle.dumps({"type": "P"})],
    [registration(), b"another frame"],
    [registration()[:-3]],
    [registration() + b"x"],
    [msgspec.msgpack.encode(["Register", 1])],
    [msgspec.msgpack.encode(["Hello", "x", 1])],
    [msgspec.msgpack.encode(["Nonsense"])],
    [b"\x91" * 50_000],
    [registration(model_path="x" * (MAX_REGISTRY_MESSAGE_BYTES - 500))[: 1 << 15]],
]


def test_garbage_is_counted_and_changes_nothing(fleet_at):
    async def scenario(fleet, endpoint):
        await send(endpoint, *GARBAGE)
        await until(lambda: fleet.links.registry.refused == len(GARBAGE))
        assert fleet.membership.members == {}
        assert fleet.links.registry.failed == 0

    fleet_at(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"wire_version": 2},
        {"wire_version": -1},
        {"endpoint": "ipc:///tmp/x"},
        {"endpoint": "tcp://[::1"},
        {"instance_id": ""},
        {"instance_id": "x" * 5000},
    ],
)
def test_unusable_registrations_are_counted(fleet_at, changes):
    async def scenario(fleet, endpoint):
        await send(endpoint, [registration(**changes)])
        await until(lambda: fleet.membership.num_refused == 1)
        assert fleet.membership.members == {}

    fleet_at(scenario)


def test_an_oversize_message_ends_only_its_own_connection(fleet_at):
    async def scenario(fleet, endpoint):
        await send(endpoint, [b"x" * (MAX_REGISTRY_MESSAGE_BYTES + 1)])
        await send(endpoint, [registration()])
        await until(lambda: "i" in fleet.membership.members)

    fleet_at(scenario)


def test_peers_that_do_not_speak_zmq_are_survived(fleet_at):
    async def scenario(fleet, endpoint):
        host, port = endpoint.removeprefix("tcp://").split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(50)]
        for one in silent[:25]:
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await send(endpoint, [registration()])
        await until(lambda: "i" in fleet.membership.members)
        for one in silent:
            one.close()

    fleet_at(scenario)


def test_thousands_of_made_up_instances_are_bounded(fleet_at):
    async def scenario(fleet, endpoint):
        many = [
            [registration(instance_id=f"i{n}", endpoint=f"tcp://127.0.0.1:{n + 1}")]
            for n in range(2000)
        ]
        await send(endpoint, *many)
        await until(lambda: fleet.membership.num_refused >= 2000 - 256, 10)
        assert len(fleet.membership.members) <= 256
        assert len(fleet.membership.refusals) <= 256

    fleet_at(scenario)


def test_an_honest_instance_is_served_during_a_flood(fleet_at):
    async def scenario(fleet, endpoint):
        floods = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, endpoint, "20")
            for _ in range(2)
        ]
        try:
            await until(lambda: fleet.links.registry.refused > 2000, 15)
            registry = endpoint.removeprefix("tcp://")
            honest = StandinInstance(Standin("both", "honest", registry=registry))
            began = time.monotonic()
            await honest.start()
            await until(lambda: num_ready(fleet) == 1)
            assert await collect(fleet, make_request()) == answer()
            took = time.monotonic() - began
            assert took < 3.0, "an honest instance had to wait"
            assert fleet.links.registry.failed == 0
            await honest.close()
        finally:
            for flood in floods:
                flood.kill()
                await flood.wait()

    fleet_at(scenario)
