"""Changing roles: plain workers in the places of the real ones, a config and nothing else."""

import asyncio
from typing import Any

import pytest

from common.config import ServeConfig
from common.errors import BadRequest, ConfigError, Unavailable
from common.instance.roles import RolePlan, Roles

NOTHING: Any = None  # neither an engine nor a link is touched here


class PlainWorker:
    """Has as many open requests as it is told; counts what it served."""

    side_channel = ""

    def __init__(self, name):
        self.name = name
        self.open = 0
        self.served = 0
        self.is_closed = False

    def num_open(self):
        return self.open

    def gauges(self):
        return {f"{self.name}_now": lambda: self.open}

    def counters(self):
        return {"served": lambda: self.served, f"{self.name}_only": lambda: 1}

    async def close(self):
        self.is_closed = True
        self.open = 0


class Instance:
    """Keeps what `Roles` tells: (is it draining, role, incarnation) each time."""

    def __init__(self, role="prefill"):
        self.workers: dict[str, PlainWorker] = {}
        self.told = []
        self.refusals: dict[str, Exception] = {}

        def plan_of(name):
            def plan(config):
                if name in self.refusals:
                    raise self.refusals[name]
                return RolePlan(f"{name} connector", make)

            async def make(parts, identity, send):
                if f"making {name}" in self.refusals:
                    raise self.refusals[f"making {name}"]
                self.workers[name] = PlainWorker(name)
                return self.workers[name]

            return plan

        self.roles = Roles(
            {name: plan_of(name) for name in ("prefill", "decode", "both")},
            ServeConfig("m", role=role),
            "i0",
            on_drain=lambda: self.tell("drain"),
            on_change=lambda: self.tell("change"),
        )

    def tell(self, what):
        roles = self.roles
        self.told.append((what, roles.is_draining, roles.role, roles.identity.incarnation))

    async def start(self):
        await self.roles.start(NOTHING, NOTHING)
        return self


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 30))


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_a_role_is_drained_then_swapped_and_told_once():
    async def scenario():
        made = await Instance().start()
        roles, old = made.roles, made.workers["prefill"]
        first = roles.identity
        old.open, old.served = 2, 5
        switching = asyncio.create_task(roles.switch("decode", 60.0))
        await until(lambda: roles.is_draining)
        assert (roles.role, roles.worker) == ("prefill", old)
        await asyncio.sleep(0.1)
        assert not switching.done(), "two requests are still running"
        old.open = 0
        await switching
        assert (roles.role, roles.worker) == ("decode", made.workers["decode"])
        assert roles.kv_connector == "decode connector"
        assert old.is_closed
        assert roles.identity.instance_id == first.instance_id
        assert roles.identity.incarnation != first.incarnation
        assert made.told == [
            ("drain", True, "prefill", first.incarnation),
            ("change", False, "decode", roles.identity.incarnation),
        ]

    run(scenario())


def test_what_is_left_at_the_end_of_the_drain_does_not_hold_it_up():
    async def scenario():
        made = await Instance("decode").start()
        made.workers["decode"].open = 3
        await made.roles.switch("prefill", 0.0)
        assert made.roles.role == "prefill"
        assert made.workers["decode"].is_closed

    run(scenario())


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("decode", ConfigError("no such connector"), BadRequest),
        ("making decode", ConfigError("no device"), BadRequest),
        ("making decode", Unavailable("not now"), Unavailable),
        ("making decode", OSError("no port"), Unavailable),
    ],
)
def test_a_role_that_cannot_be_leaves_the_old_one_serving(where, error, told):
    async def scenario():
        made = await Instance().start()
        before = made.roles.identity
        made.refusals[where] = error
        with pytest.raises(told):
            await made.roles.switch("decode", 1.0)
        assert (made.roles.role, made.roles.identity) == ("prefill", before)
        assert not made.workers["prefill"].is_closed
        assert made.told == [], "nobody was sent away"
        made.refusals.clear()
        await made.roles.switch("decode", 1.0)
        assert made.roles.role == "decode"

    run(scenario())


def test_one_change_at_a_time_and_a_caller_that_leaves_does_not_stop_it():
    async def scenario():
        made = await Instance().start()
        made.workers["prefill"].open = 1
        caller = asyncio.create_task(made.roles.switch("decode", 60.0))
        await until(lambda: made.roles.is_draining)
        with pytest.raises(Unavailable, match="already"):
            await made.roles.switch("both", 1.0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        made.workers["prefill"].open = 0
        await until(lambda: made.roles.role == "decode")

    run(scenario())


def test_the_role_it_has_is_no_change():
    async def scenario():
        made = await Instance().start()
        await made.roles.switch("prefill", 1.0)
        assert (made.told, made.roles.num_switches) == ([], 0)

    run(scenario())


@pytest.mark.parametrize("drain_s", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_drain_has_an_end(drain_s):
    async def scenario():
        made = await Instance().start()
        with pytest.raises(BadRequest, match="drain_s"):
            await made.roles.switch("decode", drain_s)

    run(scenario())


def test_a_shutdown_ends_a_change_under_way_and_both_workers():
    async def scenario():
        made = await Instance().start()
        made.workers["prefill"].open = 1
        asking = asyncio.create_task(made.roles.switch("decode", 60.0))
        await until(lambda: made.roles.is_draining)
        await made.roles.close()
        await asyncio.gather(asking, return_exceptions=True)
        assert made.workers["prefill"].is_closed
        assert made.workers["decode"].is_closed

    run(scenario())


def test_counters_never_fall_and_gauges_belong_to_the_role():
    async def scenario():
        made = await Instance().start()
        made.workers["prefill"].served = 5
        await made.roles.switch("decode", 1.0)
        made.workers["decode"].served = 2
        made.workers["decode"].open = 4
        assert made.roles.count("served") == 7
        assert made.roles.count("prefill_only") == 1
        assert made.roles.gauge("decode_now") == 4
        assert made.roles.gauge("prefill_now") == 0
        await made.roles.switch("prefill", 0.0)
        assert made.roles.count("served") == 7

    run(scenario())
