"""No accepted request is lost: real processes, real faults, answers compared to the last byte.

One 2P2D fleet for all tests; each breaks something while every kind of stream runs, and leaves the
fleet whole again. `scripts/chaos.py` is the long form. What must hold always is held always; the
limits for pauses (docs/reliability.md) are held where marked `long`, on a machine of its own, and
shown everywhere (pytest -rP).
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
            shared.longest_gap_s = shared.longest_first_s = 0.0
            await body(shared)
            await shared.whole()

        loop.run_until_complete(around())
        gap_s, first_s = shared.longest_gap_s, shared.longest_first_s
        print(f"longest pause {gap_s:.2f} s, longest time to a first piece {first_s:.2f} s")

    return run


def descriptors(child):
    return len(os.listdir(f"/proc/{child.pid}/fd"))


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_kill_and_restart_at_the_same_address(role, run):
    async def body(fleet):
        moved = await fleet.count("migrations")
        async with fleet.streaming():
            victim = await fleet.busiest(role)
            os.kill(victim.pid, signal.SIGKILL)
        if role == "decode":
            assert await fleet.count("migrations") > moved, "nothing was running there"
        await fleet.at_rest_but(victim)
        await fleet.restart(victim)
        await fleet.whole()
        async with fleet.streaming("greedy", "seeded"):
            pass

    run(body)


def test_a_rolling_restart_under_load(run):
    async def body(fleet):
        for role in ("decode", "prefill"):
            async with fleet.streaming():
                victim = await fleet.busiest(role)
                os.kill(victim.pid, signal.SIGTERM)
            await fleet.restart(victim)
            assert victim.process.returncode == 0
            await fleet.whole()

    run(body)


def test_a_stopped_decode_instance_is_left_and_its_late_words_are_not_heard(run):
    """It wakes while others write what it was writing, and goes on where it was."""

    async def body(fleet):
        moved = await fleet.count("migrations")
        async with fleet.streaming():
            victim = await fleet.busiest("decode")
            os.kill(victim.pid, signal.SIGSTOP)
            await fleet.until(lambda: fleet.is_left(victim), "it is not missed")
            os.kill(victim.pid, signal.SIGCONT)
        assert await fleet.count("migrations") > moved

    run(body)


@pytest.mark.parametrize("fate", ["wakes", "dies"])
def test_a_stopped_prefill_instance_is_left_by_the_prompts_before_it(fate, run):
    async def body(fleet):
        victim = fleet.cluster.of("prefill")[0]
        os.kill(victim.pid, signal.SIGSTOP)
        async with fleet.streaming(begun=False):
            if fate == "dies":
                await fleet.until(lambda: fleet.has_work(victim), "it gets no prompt")
                os.kill(victim.pid, signal.SIGKILL)
            else:
                await fleet.until(lambda: fleet.is_left(victim), "it is not missed")
                os.kill(victim.pid, signal.SIGCONT)
        if fate == "dies":
            await fleet.restart(victim)

    run(body)


@pytest.mark.long
@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_half_a_minute_of_sleep(role, run):
    async def body(fleet):
        victim = fleet.cluster.of(role)[0]
        before = await fleet.incarnation_of(victim)
        async with fleet.streaming():
            os.kill(victim.pid, signal.SIGSTOP)
            async with fleet.streaming():
                pass
            await asyncio.sleep(30.0)
            os.kill(victim.pid, signal.SIGCONT)
        await fleet.whole()
        assert await fleet.incarnation_of(victim) == before, "it is the same one, and used again"
        assert fleet.longest_gap_s < 8.0

    run(body)


def test_a_pause_of_a_second_moves_nothing(run):
    async def body(fleet):
        for _ in range(3):  # on a busy machine a second may become three
            before = await fleet.count("migrations")
            async with fleet.streaming("greedy", "seeded", "two choices"):
                victim = await fleet.busiest("decode")
                os.kill(victim.pid, signal.SIGSTOP)
                await asyncio.sleep(1.0)
                os.kill(victim.pid, signal.SIGCONT)
            if await fleet.count("migrations") == before:
                return
        pytest.fail("each pause of a second moved something")

    run(body)


@pytest.mark.parametrize("away_s", [3.5, pytest.param(60.0, marks=pytest.mark.long)])
def test_the_registry_away_and_back(away_s, run):
    """For longer than the silence that an instance would be given up for."""

    async def body(fleet):
        lost = await fleet.count("lost_instances")
        async with fleet.streaming():
            await fleet.registry_relay.cut()
            await asyncio.sleep(away_s)
            assert set((await fleet.states()).values()) == {"ready"}
            async with fleet.streaming("greedy", "seeded"):
                pass
            await fleet.registry_relay.mend()
        assert await fleet.count("lost_instances") == lost

    run(body)


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_all_of_one_role_gone_and_back(role, run):
    async def body(fleet):
        victims = list(fleet.cluster.of(role))
        async with fleet.streaming():
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
            async with fleet.streaming("greedy", "schema"):  # new ones as well
                pass
        await asyncio.gather(*(fleet.restart(victim) for victim in victims))
        await fleet.whole()
        async with fleet.streaming("seeded"):
            pass

    run(body)


@pytest.mark.parametrize("comes_back", [True, pytest.param(False, marks=pytest.mark.long)])
def test_nobody_left(comes_back, run):
    """New requests are refused at once; accepted ones wait for somebody, then are told so."""

    async def body(fleet):
        victims, job = list(fleet.cluster.instances), fleet.jobs[0]
        async with fleet.answers() as answers:
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
            for victim in victims:
                await fleet.until(lambda v=victim: fleet.is_gone(v), "it is not missed")
            refused = await fleet.ask(job)
            assert (refused.status, refused.is_refused) == (503, True)
            if comes_back:
                await asyncio.gather(*(fleet.restart(victim) for victim in victims))
        for job, answer in answers:
            if answer.is_complete:
                fleet.check(job, answer)
            else:  # what it had got, and why there is no more
                assert answer.is_prefix_of(fleet.expected[job.name]), job.name
                assert answer.error and not answer.error.startswith("Client"), answer.error
        if not comes_back:
            assert not any(answer.is_complete for _, answer in answers)
            await asyncio.gather(*(fleet.restart(victim) for victim in victims))
        await fleet.whole()
        async with fleet.streaming("greedy", "seeded"):
            pass

    run(body)


@pytest.mark.parametrize(
    ("role", "fault"), [("decode", "cut"), ("prefill", "silence"), ("decode", "one way")]
)
def test_a_link_that_breaks(role, fault, run):
    async def body(fleet):
        moved = await fleet.count("migrations")
        async with fleet.streaming():
            victim = await fleet.busiest(role)
            for relay in fleet.relays[victim.pid]:
                if fault == "cut":
                    await relay.cut()
                else:
                    relay.silence(one_way=fault == "one way")
            await fleet.until(lambda: fleet.is_left(victim), "it is not missed")
            for relay in fleet.relays[victim.pid]:
                await relay.mend()
        if role == "decode":
            assert await fleet.count("migrations") > moved, "nothing was running there"

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
