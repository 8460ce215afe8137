"""A running instance takes another role: what the proxy makes of it, over stand-ins."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.standin_instance import Standin
from common.errors import BadRequest, InstanceLost, Unavailable
from common.wire import RoleSet
from proxy.role_switch import RoleSwitches
from tests.proxy.fleet_of_standins import (
    answer,
    collect,
    is_idle,
    make_request,
    names,
    pd,
    running_fleet,
    until,
)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 60))


def role_of(fleet, instance):
    return fleet.membership.members[instance.info.instance_id].info.role


def test_a_decode_instance_becomes_a_prefill_instance_and_is_used_as_one():
    async def scenario():
        async with running_fleet(*pd(1, 2)) as (fleet, instances):
            p0, d0, d1 = instances
            await fleet.roles.ask("d0", "prefill", 5.0)
            assert role_of(fleet, d0) == "prefill"
            assert fleet.counts.lost_instances == 0, "a new role is no loss"
            for _ in range(8):
                assert await collect(fleet, make_request()) == answer()
            assert "RunPrefill" in names(d0)
            assert not {"RunDecode", "RunWhole"} & set(names(d0))
            assert fleet.counts.migrations == 0
            await until(lambda: all(map(is_idle, instances)))
            assert is_idle(p0)
            assert is_idle(d1)

    run(scenario())


def test_what_still_runs_is_moved_and_goes_on_with_the_same_tokens():
    async def scenario():
        async with running_fleet(*pd(1, 2, step_s=0.02)) as (fleet, instances):
            got: list[list[int]] = [[] for _ in range(6)]
            running = [
                asyncio.create_task(collect(fleet, make_request(60), tokens)) for tokens in got
            ]
            await until(lambda: all(len(tokens) > 3 for tokens in got))
            await fleet.roles.ask("d0", "prefill", 0.0)
            assert await asyncio.gather(*running) == [answer(60)] * 6
            assert fleet.counts.migrations > 0
            assert fleet.counts.failed == 0
            await until(lambda: all(map(is_idle, instances)))

    run(scenario())


def test_the_only_pair_may_lose_a_side_and_get_it_back():
    async def scenario():
        async with running_fleet(*pd(1, 1)) as (fleet, instances):
            for role in ("prefill", "both", "decode"):
                await fleet.roles.ask("d0", role, 5.0)
                assert role_of(fleet, instances[1]) == role
                assert await collect(fleet, make_request()) == answer()

    run(scenario())


def test_an_instance_that_dies_while_it_is_asked_is_told_at_once():
    async def scenario():
        async with running_fleet(*pd(1, 2, step_s=0.02)) as (fleet, instances):
            running = asyncio.create_task(collect(fleet, make_request(200)))
            await until(lambda: any(i.sequences for i in instances[1:]))
            busy = next(i for i in instances[1:] if i.sequences)
            asking = asyncio.create_task(fleet.roles.ask(busy.info.instance_id, "prefill", 600.0))
            await until(lambda: busy.is_draining)
            await busy.close()
            with pytest.raises(InstanceLost):
                await asking
            assert await running == answer(200)

    run(scenario())


def test_an_instance_with_another_connector_takes_requests_whole():
    async def scenario():
        configs = [Standin("prefill", "p0"), Standin("both", "b0", kv_connector="")]
        async with running_fleet(*configs) as (fleet, instances):
            assert await collect(fleet, make_request()) == answer()
            assert "RunWhole" in names(instances[1])

    run(scenario())


def test_one_wish_at_a_time_and_refusals_keep_their_kind():
    async def scenario():
        sent = []

        def send(instance_id, message):
            sent.append(message)
            return True

        roles = RoleSwitches(send)
        first = asyncio.create_task(roles.ask("i", "decode", 1.0))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="already"):
            await roles.ask("i", "prefill", 1.0)
        roles.answered("i", RoleSet("prefill", "config_error", "role decode cannot be had"))
        with pytest.raises(Exception, match="cannot be had"):
            await first
        again = asyncio.create_task(roles.ask("i", "decode", 1.0))
        await asyncio.sleep(0)
        roles.answered("i", RoleSet("prefill", "invalid_value", "no"))
        with pytest.raises(BadRequest):
            await again
        assert len(sent) == 2
        roles.answered("i", RoleSet("decode"))  # nobody waits for it
        assert not roles.in_progress

    run(scenario())
