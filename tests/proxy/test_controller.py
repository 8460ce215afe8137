"""The controller over stand-ins: what it sees, what it says, and one real flip."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from common.config import ProxyConfig
from common.errors import ConfigError
from proxy.advice import Targets
from proxy.controller import Controller, sample_of
from scripts.proxy_command import settings_of
from tests.proxy.fleet_of_standins import answer, collect, make_request, pd, running_fleet, until

QUICK = Targets(queue_s=0.01, window_s=0.5, cooldown_s=0.5)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 60))


async def watched(fleet, mode, scenario):
    controller = Controller(fleet, mode, QUICK, sample_s=0.02)
    watching = asyncio.create_task(controller.run())
    try:
        await scenario(controller)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def flood(fleet, count=60):
    """Prompts that queue: a stand-in computes all it has at once, so each takes a while."""
    return [asyncio.create_task(collect(fleet, make_request(2))) for _ in range(count)]


def test_it_sees_what_the_proxy_has_sent():
    async def scenario():
        async with running_fleet(*pd(1, 2, prefill_s=0.3)) as (fleet, _):
            running = flood(fleet, 4)
            await until(lambda: fleet.num_in_flight == 4)
            sample = sample_of(fleet, lambda: (0.5, None), 1.0)
            assert [i.role for i in sample.instances] == ["decode", "decode", "prefill"]
            assert sample.of("prefill")[0].queued_tokens == 4 * 20
            assert (sample.ttft_s, sample.computed_tokens) == (0.5, 0)
            assert await asyncio.gather(*running) == [answer(2)] * 4
            assert sample_of(fleet, lambda: (0.5, None), 2.0).computed_tokens == 4 * 20

    run(scenario())


def test_it_suggests_and_leaves_it_at_that():
    async def scenario():
        async with running_fleet(*pd(1, 2, prefill_s=0.4)) as (fleet, _):

            async def look(controller):
                stop = asyncio.Event()

                async def keep_busy():
                    while not stop.is_set():
                        await asyncio.gather(*flood(fleet, 6))

                loads = [asyncio.create_task(keep_busy()) for _ in range(4)]
                await until(lambda: controller.describe()["flip"] is not None, 30.0)
                described = controller.describe()
                stop.set()
                await asyncio.gather(*loads)
                assert described["suggests"] == "2P1D"
                assert described["flip"]["role"] == "prefill"
                assert described["pressure"]["prefill"] > 1.0
                assert controller.num_flips == 0
                roles = [m.info.role for m in fleet.membership.members.values()]
                assert sorted(roles) == ["decode", "decode", "prefill"]

            await watched(fleet, "suggest", look)

    run(scenario())


def test_targets_come_from_the_command_line():
    def targets(**flags):
        return settings_of(ProxyConfig(**flags), "").targets

    given = targets(controller="act", controller_ttft_ms=800.0, controller_itl_ms=50.0)
    assert (given.ttft_s, given.itl_s) == (0.8, 0.05)
    assert targets(slo_ttft_ms=500.0).ttft_s == 0.5
    assert targets(controller="act", slo_ttft_ms=500.0, controller_ttft_ms=900.0).ttft_s == 0.9
    assert targets(controller="act") == Targets()
    with pytest.raises(ConfigError, match="--controller-itl-ms has no effect without"):
        ProxyConfig(controller_itl_ms=50.0)
    with pytest.raises(ConfigError, match="--controller-itl-ms must be above 0"):
        ProxyConfig(controller="act", controller_itl_ms=-1.0)


def test_a_target_for_the_gap_between_tokens_asks_for_decode(caplog):
    """KV blocks are free and nobody waits: only the streams are slow."""

    async def scenario():
        async with running_fleet(*pd(2, 1, step_s=0.05)) as (fleet, _):
            targets = replace(QUICK, itl_s=0.01)
            controller = Controller(fleet, "suggest", targets, lambda: (None, 0.05), sample_s=0.02)
            watching = asyncio.create_task(controller.run())
            stop = asyncio.Event()

            async def keep_busy():
                while not stop.is_set():
                    await collect(fleet, make_request(50))

            loads = [asyncio.create_task(keep_busy()) for _ in range(3)]
            await until(lambda: controller.describe()["flip"] is not None, 30.0)
            described = controller.describe()
            stop.set()
            await asyncio.gather(*loads)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            assert described["suggests"] == "1P2D"
            assert described["flip"]["role"] == "decode"
            assert described["targets"]["itl_s"] == 0.01
            assert controller.num_flips == 0

    with caplog.at_level("INFO"):
        run(scenario())
    said = [r.message for r in caplog.records if "would serve this load better" in r.message]
    assert said and said[0].startswith("1P2D would serve this load better: decode is at")


def test_it_flips_one_and_every_request_is_answered():
    async def scenario():
        async with running_fleet(*pd(1, 2, prefill_s=0.4)) as (fleet, _):

            async def look(controller):
                stop = asyncio.Event()

                async def keep_busy():
                    while not stop.is_set():
                        assert await asyncio.gather(*flood(fleet, 6)) == [answer(2)] * 6

                loads = [asyncio.create_task(keep_busy()) for _ in range(4)]
                await until(lambda: controller.num_flips == 1, 30.0)
                stop.set()
                await asyncio.gather(*loads)
                roles = [m.info.role for m in fleet.membership.members.values()]
                assert sorted(roles) == ["decode", "prefill", "prefill"]

            await watched(fleet, "act", look)
            assert fleet.counts.failed == 0

    run(scenario())
