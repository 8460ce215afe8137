"""The registry and who follows it: who is told what, and two real ends of the link."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.standin_instance import Standin, StandinInstance
from common.wire import Deregister, InstanceInfo, Register
from proxy.registry import FOLLOWER_TIMEOUT_S, MAX_FOLLOWERS, MAX_OWNERS, Audience, Registry
from proxy.relay import Fleet
from tests.proxy.fleet_of_standins import (
    answer,
    collect,
    make_request,
    num_ready,
    until,
)


def info(name="p0", incarnation="1"):
    return InstanceInfo(
        *(name, incarnation, "prefill", "http://x:1", "tcp://x:2", "", "m", "", 8, "f", "shm", 1, 1)
    )


def test_what_instances_say_goes_to_all_who_follow():
    audience = Audience()
    assert audience.of(b"p0", Register(info()), 0.0) == []
    audience.follows(b"a", 0.0)
    audience.follows(b"b", 0.0)
    assert audience.of(b"p0", Register(info()), 0.0) == [b"a", b"b"]


@pytest.mark.parametrize(
    ("peer", "incarnation", "told"),
    [(b"p0", "1", [b"a"]), (b"thief", "1", []), (b"p0", "2", [])],
)
def test_only_who_registered_an_instance_can_take_it_back(peer, incarnation, told):
    audience = Audience()
    audience.follows(b"a", 0.0)
    audience.of(b"p0", Register(info()), 0.0)
    assert audience.of(peer, Deregister("p0", incarnation), 0.0) == told


def test_a_follower_that_is_silent_is_forgotten():
    audience = Audience()
    audience.follows(b"a", 0.0)
    assert audience.of(b"p0", Register(info()), FOLLOWER_TIMEOUT_S) == [b"a"]
    assert audience.of(b"p0", Register(info()), FOLLOWER_TIMEOUT_S + 0.1) == []
    audience.follows(b"a", 10.0)
    assert audience.of(b"p0", Register(info()), 10.0) == [b"a"]


def test_a_crowd_takes_bounded_room():
    audience = Audience()
    for number in range(1000):
        audience.follows(b"%d" % number, 0.0)
    for number in range(2 * MAX_OWNERS):
        told = audience.of(b"p", Register(info(f"p{number}")), 0.0)
    assert len(told) == MAX_FOLLOWERS
    assert audience.of(b"p", Deregister("p0", "1"), 0.0) == [], "the oldest was forgotten"
    assert audience.of(b"p", Deregister(f"p{2 * MAX_OWNERS - 1}", "1"), 0.0)


def test_proxies_that_follow_one_registry_use_the_same_instances():
    async def scenario():
        registry = Registry("tcp://127.0.0.1:0")
        at = registry.endpoint.removeprefix("tcp://")
        instances = [StandinInstance(Standin("both", registry=at)) for _ in range(2)]
        fleets = [Fleet(), Fleet()]
        try:
            for each in instances:
                await each.start()
            for fleet in fleets:
                fleet.start(followed=registry.endpoint)
            await until(lambda: all(num_ready(fleet) == 2 for fleet in fleets), 20.0)
            for fleet in fleets:
                assert await collect(fleet, make_request()) == answer()
            await instances[0].close(goodbye=True)
            await until(lambda: all(num_ready(fleet) == 1 for fleet in fleets), 20.0)
        finally:
            for fleet in fleets:
                await fleet.close()
            await instances[1].close()
            await registry.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_two_proxies_account_for_each_others_requests():
    """What one proxy runs at an instance, the other sees in its load report, and goes elsewhere."""

    async def scenario():
        registry = Registry("tcp://127.0.0.1:0")
        at = registry.endpoint.removeprefix("tcp://")
        instances = [StandinInstance(Standin("both", f"b{n}", registry=at)) for n in range(2)]
        one, other = Fleet(), Fleet()
        try:
            for each in instances:
                await each.start()
            one.start(followed=registry.endpoint)
            await until(lambda: num_ready(one) == 2, 20.0)
            one.membership.drain("b1")  # so all of its requests are at b0
            running = [asyncio.create_task(collect(one, make_request(600))) for _ in range(4)]
            other.start(followed=registry.endpoint)
            await until(lambda: num_ready(other) == 2, 20.0)
            await until(lambda: load_of(other, "b0") >= 4, 20.0)
            for _ in range(3):
                assert await collect(other, make_request(2)) == answer(2)
            assert {type(m).__name__ for m in instances[1].seen} == {"RunWhole"}
            assert len(instances[1].seen) == 3
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        finally:
            await one.close()
            await other.close()
            for each in instances:
                await each.close()
            await registry.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def load_of(fleet, instance_id):
    load = fleet.membership.members[instance_id].load
    return load.num_running if load else 0
