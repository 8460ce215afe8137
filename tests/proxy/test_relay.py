"""The fleet over stand-in instances in the same process: real links, made-up tokens."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter

import pytest
import zmq
from msgspec.structs import replace

from benchmarks.standin_instance import Standin, StandinInstance
from common.errors import InstanceLost, Overloaded, Unavailable, XpydError
from common.unread import MAX_UNREAD_BYTES
from common.wire import Deregister, Register, RunWhole
from proxy.choreography import Limits
from proxy.membership import Membership
from proxy.relay import Fleet
from tests.ports import free_port
from tests.proxy.fleet_of_standins import (
    PROMPT,
    answer,
    collect,
    is_idle,
    make_request,
    names,
    num_ready,
    pd,
    running_fleet,
    until,
)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 30))


def test_one_prefill_one_decode():
    async def scenario():
        async with running_fleet(*pd()) as (fleet, (p, d)):
            assert await collect(fleet, make_request()) == answer()
            assert names(p) == ["RunPrefill"]
            assert names(d) == ["RunDecode"]
            await until(lambda: is_idle(p) and is_idle(d))
            assert fleet.num_in_flight == 0
            assert fleet.counts.finished == 1
            assert [fleet.num_assigned(i) for i in ("p0", "d0")] == [0, 0]

    run(scenario())


def test_two_and_two_share_the_work():
    async def scenario():
        async with running_fleet(*pd(2, 2), prefill_policy="round_robin") as (fleet, instances):
            prompts = [(*PROMPT, i) for i in range(32)]
            answers = await asyncio.gather(
                *(collect(fleet, make_request(prompt=prompt)) for prompt in prompts)
            )
            assert answers == [answer(prompt=prompt) for prompt in prompts]
            shares = [Counter(names(i)) for i in instances]
            assert [s["RunPrefill"] for s in shares[:2]] == [16, 16]
            assert [s["RunDecode"] for s in shares[2:]] == [16, 16]

    run(scenario())


@pytest.mark.parametrize("role", ["both", "decode", "prefill"])
def test_one_instance_alone_runs_requests_whole(role):
    async def scenario():
        async with running_fleet(Standin(role)) as (fleet, (instance,)):
            assert fleet.is_ready()
            assert await collect(fleet, make_request()) == answer()
            assert names(instance) == ["RunWhole"]

    run(scenario())


def test_the_first_token_comes_before_the_hand_over():
    async def scenario():
        async with running_fleet(*pd(step_s=0.5)) as (fleet, _):
            events = fleet.generate(make_request())
            first = await asyncio.wait_for(anext(events), 0.3)
            assert list(first.token_ids) == answer(1)
            await events.aclose()

    run(scenario())


def test_a_single_token_tells_both_at_once():
    async def scenario():
        async with running_fleet(*pd()) as (fleet, (p, d)):
            assert await collect(fleet, make_request(max_tokens=1)) == answer(1)
            await until(lambda: names(p) == ["RunPrefill", "Abort"])
            await until(lambda: names(d) == ["RunDecode", "Abort"])
            await until(lambda: is_idle(p) and is_idle(d))

    run(scenario())


def test_a_resumed_request_continues():
    async def scenario():
        async with running_fleet(*pd()) as (fleet, _):
            request = make_request(output_token_ids=tuple(answer(7)))
            assert await collect(fleet, request) == answer(first=7)

    run(scenario())


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_read", [0, 1, 5])
def test_closing_the_stream_stops_both(tokens_read):
    async def scenario():
        delays = {"prefill_s": 5.0} if tokens_read == 0 else {}
        async with running_fleet(*pd(**delays)) as (fleet, (p, d)):
            events = fleet.generate(make_request(max_tokens=1000))
            for _ in range(tokens_read):
                await anext(events)
            if tokens_read == 0:
                first = asyncio.ensure_future(anext(events))
                await until(lambda: names(d) == ["RunDecode"])
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            await events.aclose()
            await until(lambda: is_idle(p) and is_idle(d), 1.0)
            assert fleet.num_in_flight == 0

    run(scenario())


# --- refusals ------------------------------------------------------------------------------------


def test_without_instances_a_request_is_refused_at_once():
    async def scenario():
        async with running_fleet() as (fleet, _):
            assert not fleet.is_ready()
            assert fleet.models() == []
            with pytest.raises(Unavailable) as refused:
                await asyncio.wait_for(collect(fleet, make_request()), 1.0)
            assert refused.value.retry_after_s
            assert fleet.counts.rejections == {"unavailable": 1}

    run(scenario())


@pytest.mark.parametrize("field", ["kv_fingerprint", "kv_connector", "model"])
def test_instances_that_do_not_match_are_not_paired(field):
    async def scenario():
        other = dataclasses.replace(Standin("decode", "d0"), **{field: "other"})  # type: ignore[arg-type]
        async with running_fleet(Standin("prefill", "p0"), other) as (fleet, _):
            assert not fleet.is_ready()
            with pytest.raises(Unavailable, match=field):
                await collect(fleet, make_request())

    run(scenario())


def test_a_client_that_does_not_read_is_given_up_before_it_fills_the_memory():
    async def scenario():
        async with running_fleet(*pd(step_s=0.0)) as (fleet, instances):
            events = fleet.generate(make_request(max_tokens=100_000))
            got = list((await anext(events)).token_ids)
            await until(lambda: fleet.num_in_flight == 0, 25.0)
            with pytest.raises(Unavailable, match="does not read"):
                async for event in events:
                    got.extend(event.token_ids)
            assert got == answer(len(got))
            assert 1000 < len(got) < MAX_UNREAD_BYTES // 100
            await until(lambda: all(map(is_idle, instances)))

    run(scenario())


def test_a_full_instance_sends_the_request_to_another():
    async def scenario():
        configs = [Standin("prefill", "p0", max_waiting=0), *pd(2)[1:]]
        async with running_fleet(*configs, prefill_policy="round_robin") as (fleet, _):
            for _ in range(4):
                assert await collect(fleet, make_request()) == answer()
        async with running_fleet(Standin(max_waiting=0)) as (fleet, _):
            with pytest.raises(Overloaded):
                await collect(fleet, make_request())

    run(scenario())


def test_a_draining_instance_finishes_its_work_and_gets_no_new():
    async def scenario():
        async with running_fleet(*pd(1, 2)) as (fleet, (_, d0, d1)):
            running = asyncio.ensure_future(collect(fleet, make_request(max_tokens=200)))
            await until(lambda: bool(d0.sequences or d1.sequences))
            busy, idle = (d0, d1) if d0.sequences else (d1, d0)
            fleet.membership.drain(busy.info.instance_id)
            for _ in range(3):
                assert await collect(fleet, make_request()) == answer()
            assert names(busy) == ["RunDecode"]
            assert names(idle) == ["RunDecode"] * 3
            assert await running == answer(200)

    run(scenario())


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize("moment", ["prefilling", "decoding"])
@pytest.mark.parametrize("spare", [False, True])
def test_a_crash_does_not_change_the_answer(victim, moment, spare):
    async def scenario():
        delays = {"prefill_s": 0.3} if moment == "prefilling" else {"step_s": 0.01}
        configs = [*pd(**delays), *([Standin("prefill", "p9"), Standin("decode", "d9")] * spare)]
        async with running_fleet(*configs) as (fleet, instances):
            got: list[int] = []
            requests = [
                asyncio.ensure_future(collect(fleet, make_request(max_tokens=60), seen))
                for seen in [got, None, None, None]
            ]
            p, d = instances[:2]
            if moment == "prefilling":
                await until(lambda: bool(p.offers) and bool(d.tasks))
            else:
                await until(lambda: len(got) > 5)
            await instances[victim].close()
            answers = await asyncio.wait_for(asyncio.gather(*requests), 5)
            assert answers == [answer(60)] * 4
            assert await collect(fleet, make_request()) == answer()
            await until(lambda: all(is_idle(i) for i in instances if i is not instances[victim]))

    run(scenario())


@pytest.mark.parametrize("recompute", [True, False])
def test_a_broken_hand_over_does_not_change_the_answer(recompute):
    async def scenario():
        configs = pd(fail_fetch=True, recompute=recompute)
        async with running_fleet(*configs) as (fleet, (p, d)):
            assert await collect(fleet, make_request()) == answer()
            assert names(d) == (["RunDecode"] if recompute else ["RunDecode", "RunWhole"])
            await until(lambda: is_idle(p) and is_idle(d))

    run(scenario())


def test_when_all_are_gone_accepted_requests_wait_a_while_then_fail():
    async def scenario():
        limits = Limits(recovery_s=0.5)
        async with running_fleet(*pd(), limits=limits) as (fleet, (p, d)):
            request = asyncio.ensure_future(collect(fleet, make_request(max_tokens=1000)))
            await until(lambda: bool(d.sequences))
            await p.close()
            await d.close()
            with pytest.raises(InstanceLost):
                await asyncio.wait_for(request, 5)
            assert fleet.num_in_flight == 0

    run(scenario())


def test_a_stream_is_not_continued_by_another_kind_of_instance():
    """Other weights or kernels would continue another text."""

    async def scenario():
        other = Standin("both", "other", kv_fingerprint="other")
        limits = Limits(recovery_s=0.5)
        async with running_fleet(Standin("decode", "d0"), limits=limits) as (fleet, (d,)):
            request = asyncio.ensure_future(collect(fleet, make_request(max_tokens=1000)))
            await until(lambda: bool(d.sequences))
            stranger = StandinInstance(other)
            await stranger.start()
            fleet.membership.watch(stranger.address, "static")
            await until(lambda: num_ready(fleet) == 2)
            await d.close()
            with pytest.raises(InstanceLost):
                await request
            assert names(stranger) == []
            assert await collect(fleet, make_request()) == answer()
            await stranger.close()

    run(scenario())


def test_work_that_nobody_wants_is_stopped():
    async def scenario():
        async with running_fleet(Standin("both", "b")) as (fleet, (instance,)):
            fleet.links.send("b", RunWhole(make_request(max_tokens=100_000), 1))
            await until(lambda: names(instance)[:2] == ["RunWhole", "Abort"])
            assert is_idle(instance)

    run(scenario())


def test_an_instance_that_comes_back_takes_over():
    async def scenario():
        async with running_fleet(Standin("both", "b", endpoint_port=0)) as (fleet, (old,)):
            request = asyncio.ensure_future(collect(fleet, make_request(max_tokens=100)))
            await until(lambda: bool(old.sequences))
            http_port = int(old.address.rpartition(":")[2])
            await old.close()
            new = StandinInstance(Standin("both", "b", port=http_port))
            await new.start()
            assert await asyncio.wait_for(request, 10) == answer(100)
            assert fleet.counts.migrations == 1
            member = fleet.membership.members["b"]
            assert member.info.incarnation == new.info.incarnation
            await new.close()

    run(scenario())


async def started_at(port):
    """A closed socket's port is free again a moment later."""
    for attempt in range(200):
        instance = StandinInstance(Standin("both", "b", endpoint_port=port))
        try:
            await instance.start()
            return instance
        except zmq.ZMQError:
            assert attempt < 199
            await asyncio.sleep(0.05)


def test_a_restart_at_the_same_endpoint_is_a_new_incarnation():
    async def scenario():
        port = free_port()  # not one that the kernel may give to somebody else meanwhile
        async with running_fleet(Standin("both", "b", endpoint_port=port)) as (fleet, (old,)):
            request = asyncio.ensure_future(collect(fleet, make_request(max_tokens=100)))
            await until(lambda: bool(old.sequences))
            await old.close()
            new = await started_at(port)
            assert await asyncio.wait_for(request, 10) == answer(100)
            assert fleet.membership.members["b"].info.incarnation == new.info.incarnation
            await new.close()

    run(scenario())


def test_an_instance_that_forgot_us_gets_the_request_again():
    async def scenario():
        async with running_fleet(Standin("both")) as (fleet, (instance,)):
            request = asyncio.ensure_future(collect(fleet, make_request(max_tokens=100)))
            await until(lambda: bool(instance.sequences))
            for peer in list(instance.peers):
                del instance.peers[peer]
                instance._forget(peer)
            assert await asyncio.wait_for(request, 5) == answer(100)

    run(scenario())


def test_a_client_that_reads_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr("proxy.relay.UNREAD_S", 0.3)

    async def scenario():
        async with running_fleet(Standin("both", step_s=0.001)) as (fleet, (instance,)):
            events = fleet.generate(make_request(max_tokens=100_000))
            await anext(events)
            await until(lambda: is_idle(instance) and fleet.num_in_flight == 0)
            with pytest.raises(XpydError):
                async for _ in events:
                    pass

    run(scenario())


def test_a_client_is_not_given_up_for_what_it_could_not_have_read_yet(monkeypatch):
    monkeypatch.setattr("proxy.relay.UNREAD_S", 0.3)

    async def scenario():
        async with running_fleet(Standin("both", step_s=0.5)) as (fleet, _):
            take = fleet._on_tokens

            def take_then_tick(instance_id, message, now):
                take(instance_id, message, now)
                fleet._on_tick(time.monotonic())  # before the reader has had a turn

            monkeypatch.setattr(fleet, "_on_tokens", take_then_tick)
            assert await collect(fleet, make_request(max_tokens=4)) == answer(4)

    run(scenario())


def test_closing_the_fleet_ends_every_request():
    async def scenario():
        async with running_fleet(*pd()) as (fleet, (p, d)):
            requests = [
                asyncio.ensure_future(collect(fleet, make_request(max_tokens=1000)))
                for _ in range(3)
            ]
            await until(lambda: len(d.sequences) == 3)
            await fleet.close()
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(result) for result in results] == [Unavailable] * 3
            await until(lambda: is_idle(p) and is_idle(d))

    run(scenario())


# --- discovery -----------------------------------------------------------------------------------


def test_instances_register_and_leave():
    async def scenario():
        fleet = Fleet(Membership())
        fleet.start("tcp://127.0.0.1:0")
        assert fleet.links.registry is not None
        registry = fleet.links.registry.endpoint.removeprefix("tcp://")
        both = StandinInstance(Standin("both", "b", registry=registry))
        await both.start()
        await until(lambda: num_ready(fleet) == 1)
        assert await collect(fleet, make_request()) == answer()
        assert [card.name for card in fleet.models()] == ["stand-in"]
        await both.close(goodbye=True)
        await until(lambda: fleet.membership.members["b"].is_leaving)
        assert not fleet.is_ready()
        await until(lambda: not fleet.membership.members)
        await fleet.close()

    run(scenario())


def test_a_static_instance_may_start_later():
    async def scenario():
        late = StandinInstance(Standin("both", "late"))
        await late.start()
        port = int(late.address.rpartition(":")[2])
        await late.close()
        async with running_fleet() as (fleet, _):
            fleet.membership.watch(f"127.0.0.1:{port}", "static")
            await asyncio.sleep(0.5)
            assert not fleet.is_ready()
            late = StandinInstance(Standin("both", "late", port=port))
            await late.start()
            await until(fleet.is_ready)
            await late.close()

    run(scenario())


def test_messages_of_a_registry_peer_cannot_touch_a_live_instance():
    async def scenario():
        async with running_fleet(Standin("both", "b")) as (fleet, (both,)):
            info = both.info
            fleet.links._on_registry(b"x", Deregister("b", info.incarnation))
            evil = replace(info, incarnation="evil", endpoint="tcp://127.0.0.1:9")
            fleet.links._on_registry(b"x", Register(evil))
            await asyncio.sleep(0.3)
            assert await collect(fleet, make_request()) == answer()
            assert fleet.membership.num_refused == 2

    run(scenario())
