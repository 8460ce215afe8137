"""No accepted request is lost: real processes, real faults, answers compared to the last byte.

One 2P2D fleet for all tests; each breaks something while every kind of stream runs, and leaves the
fleet whole again. `scripts/chaos.py` is the long form.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

import pytest

from tests.e2e.bad_network import fleet_behind_relays

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.0/8 and /proc"),
]
STOPPED_S = 4.5  # longer than the 3 s of silence after which an instance counts as dead


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(loop, tmp_path_factory):
    context = fleet_behind_relays(tmp_path_factory.mktemp("faults"))
    yield loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(context.__aexit__(None, None, None))


@pytest.fixture
def run(loop, shared):
    """Runs `body(fleet)` on a whole fleet, and sees that it is whole and at rest afterwards."""

    def run(body):
        async def around():
            await shared.whole()
            await body(shared)
            await shared.whole()

        loop.run_until_complete(around())

    return run


def descriptors(child):
    return len(os.listdir(f"/proc/{child.pid}/fd"))


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_kill_and_restart_at_the_same_address(role, run):
    async def body(fleet):
        victim = fleet.cluster.of(role)[0]
        async with fleet.streaming():
            os.kill(victim.pid, signal.SIGKILL)
        await fleet.at_rest_but(victim)
        await fleet.restart(victim)
        await fleet.whole()
        async with fleet.streaming("greedy", "seeded"):
            pass

    run(body)


def test_a_rolling_restart_under_load(run):
    async def body(fleet):
        for victim in [*fleet.cluster.of("decode")[:1], *fleet.cluster.of("prefill")[:1]]:
            async with fleet.streaming():
                os.kill(victim.pid, signal.SIGTERM)
            await fleet.restart(victim)
            assert victim.process.returncode == 0
            await fleet.whole()

    run(body)


def test_a_stopped_instance_is_left_and_its_late_words_are_not_heard(run):
    async def body(fleet):
        victim = fleet.cluster.of("decode")[0]
        async with fleet.streaming():
            os.kill(victim.pid, signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)
            os.kill(victim.pid, signal.SIGCONT)

    run(body)


def test_a_pause_of_a_second_moves_nothing(run):
    async def body(fleet):
        victim = fleet.cluster.of("decode")[0]
        for _ in range(3):  # on a busy machine a second may become three
            before = await fleet.count("migrations")
            async with fleet.streaming("greedy", "seeded", "two choices"):
                os.kill(victim.pid, signal.SIGSTOP)
                await asyncio.sleep(1.0)
                os.kill(victim.pid, signal.SIGCONT)
            if await fleet.count("migrations") == before:
                return
        pytest.fail("each pause of a second moved something")

    run(body)


def test_the_registry_away_and_back(run):
    async def body(fleet):
        lost = await fleet.count("lost_instances")
        async with fleet.streaming():
            await fleet.registry_relay.cut()
            await asyncio.sleep(4.0)
            assert set((await fleet.states()).values()) == {"ready"}
            await fleet.registry_relay.mend()
        assert await fleet.count("lost_instances") == lost

    run(body)


def test_all_decode_instances_gone_and_back(run):
    async def body(fleet):
        victims = list(fleet.cluster.of("decode"))
        async with fleet.streaming():
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
        await asyncio.gather(*(fleet.restart(victim) for victim in victims))
        await fleet.whole()
        async with fleet.streaming("seeded"):
            pass

    run(body)


@pytest.mark.parametrize(("role", "fault"), [("decode", "cut"), ("prefill", "silence")])
def test_a_link_cut(role, fault, run):
    async def body(fleet):
        victim = fleet.cluster.of(role)[0]
        async with fleet.streaming():
            for relay in fleet.relays[victim.pid]:
                if fault == "cut":
                    await relay.cut()
                else:
                    relay.silence()
            await asyncio.sleep(STOPPED_S)
            for relay in fleet.relays[victim.pid]:
                await relay.mend()

    run(body)


def test_a_slow_link_moves_nothing(run):
    async def body(fleet):
        before = await fleet.count("migrations")
        for relay in (r for relays in fleet.relays.values() for r in relays):
            relay.slow(64 << 10, delay_s=0.1)
        async with fleet.streaming():
            pass
        for relay in (r for relays in fleet.relays.values() for r in relays):
            relay.slow()
        assert await fleet.count("migrations") == before

    run(body)


def test_hang_ups_at_random_points(run):
    rng = random.Random(5)

    async def body(fleet):
        proxy = fleet.cluster.proxy
        await fleet.ask(fleet.jobs[0])
        before = {child.pid: descriptors(child) for child in [proxy, *fleet.cluster.instances]}
        for _ in range(3):
            chosen = [rng.choice(fleet.jobs) for _ in range(8)]
            cuts = [rng.randrange(1, 60) for _ in chosen]
            asked = (fleet.ask(j, hang_up_after=c) for j, c in zip(chosen, cuts, strict=True))
            for job, answer in zip(chosen, await asyncio.gather(*asked), strict=True):
                assert not answer.error, answer.error
                assert answer.is_prefix_of(fleet.expected[job.name]), job.name
            await fleet.at_rest()
        for child in [proxy, *fleet.cluster.instances]:
            assert descriptors(child) <= before[child.pid] + 8, child.plan.name

    run(body)
