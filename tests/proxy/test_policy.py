"""Choosing instances: tables and properties over made-up fleets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policies import POLICIES
from proxy.policy import (
    InstanceView,
    NoInstance,
    Pair,
    RequestFacts,
    Snapshot,
    Whole,
    can_pair,
    choose_pair,
)


def view(instance_id, role, **changes):
    fields = {
        "model": "m",
        "kv_fingerprint": "f",
        "kv_connector": "shm",
        "max_model_len": 64,
        "block_size": 4,
        "is_suspect": False,
        "queued_tokens": 0,
        "num_requests": 0,
        "free_blocks": 100,
        "total_blocks": 100,
    }
    return InstanceView(instance_id, role, **{**fields, **changes})


def choose(instances, policy="least_loaded", **facts):
    prefill_policy, decode_policy = POLICIES[policy]
    snapshot = Snapshot("m", tuple(instances))
    return choose_pair(
        snapshot, RequestFacts(**{"num_tokens": 8, **facts}), prefill_policy, decode_policy
    )


P0, P1 = view("p0", "prefill"), view("p1", "prefill")
D0, D1 = view("d0", "decode"), view("d1", "decode")
B0 = view("b0", "both")


@pytest.mark.parametrize(
    ("fleet", "route"),
    [
        ([P0, D0], Pair("p0", "d0")),
        ([D0], Whole("d0")),
        ([P0], Whole("p0")),
        ([B0], Whole("b0")),
        ([P0, B0], Pair("p0", "b0")),
        ([D0, B0], Whole("d0")),
        ([], NoInstance("no instance is ready")),
        ([P0, view("d0", "decode", is_suspect=True)], Whole("p0")),
        ([view("p0", "prefill", is_suspect=True), D0], Whole("d0")),
        ([view("d0", "decode", is_suspect=True)], Whole("d0")),
    ],
)
def test_what_a_fleet_can_do(fleet, route):
    assert choose(fleet) == route


@pytest.mark.parametrize("field", ["kv_fingerprint", "kv_connector", "model"])
def test_a_mismatch_is_refused_and_named(field):
    for fleet in (
        [P0, view("d0", "decode", **{field: "x"})],
        [view("p0", "prefill", **{field: "x"}), D0],
    ):
        route = choose(fleet)
        assert isinstance(route, NoInstance)
        assert field in route.reason


def test_a_matching_pair_is_found_among_strangers():
    fleet = [
        view("p0", "prefill", kv_fingerprint="x"),
        P1,
        view("d0", "decode", kv_fingerprint="y"),
        D1,
    ]
    assert choose(fleet) == Pair("p1", "d1")


def test_an_instance_of_another_model_is_no_partner_but_no_obstacle():
    assert choose([P0, D0, view("z", "decode", model="x")]) == Pair("p0", "d0")
    assert choose([B0, view("z", "prefill", model="x")]) == Whole("b0")


def test_prefill_goes_where_the_queue_is_shortest():
    assert choose([view("p0", "prefill", queued_tokens=9), P1, D0]) == Pair("p1", "d0")


def test_decode_goes_where_there_is_room_then_few_neighbours():
    full = view("d0", "decode", free_blocks=1)
    busy = view("d1", "decode", num_requests=7)
    calm = view("d2", "decode", num_requests=6)
    assert choose([P0, full, busy], num_tokens=8) == Pair("p0", "d1")
    assert choose([P0, full, busy, calm], num_tokens=8) == Pair("p0", "d2")
    assert choose([P0, full], num_tokens=8) == Pair("p0", "d0")


def test_round_robin_gives_everybody_the_same():
    fleet = [P0, P1, D0, D1, view("d2", "decode")]
    routes = [choose(fleet, "round_robin", turn=turn) for turn in range(12)]
    assert Counter(route.prefill for route in routes) == {"p0": 6, "p1": 6}
    assert Counter(route.decode for route in routes) == {"d0": 4, "d1": 4, "d2": 4}


def test_equals_take_turns_under_least_loaded():
    routes = [choose([P0, P1, D0, D1], turn=turn) for turn in range(4)]
    assert {route.prefill for route in routes} == {"p0", "p1"}
    assert {route.decode for route in routes} == {"d0", "d1"}


def test_who_failed_is_avoided_while_somebody_else_is_there():
    assert choose([P0, P1, D0], avoid=frozenset({"p0"})) == Pair("p1", "d0")
    assert choose([P0, D0, D1], avoid=frozenset({"d0"})) == Pair("p0", "d1")
    assert choose([D0], avoid=frozenset({"d0"})) == Whole("d0")


def test_without_a_hand_over_decode_runs_it_whole():
    assert choose([P0, D0], prefer_whole=True) == Whole("d0")
    assert choose([P0], prefer_whole=True) == Whole("p0")


_views = st.builds(
    view,
    st.sampled_from(["i0", "i1", "i2", "i3", "i4", "i5"]),
    st.sampled_from(["prefill", "decode", "both"]),
    model=st.sampled_from(["m", "m", "x"]),
    kv_fingerprint=st.sampled_from(["f", "f", "g"]),
    kv_connector=st.sampled_from(["shm", "shm", ""]),
    is_suspect=st.booleans(),
    queued_tokens=st.integers(0, 10**6),
    num_requests=st.integers(0, 1000),
    free_blocks=st.integers(0, 100),
    total_blocks=st.integers(0, 100),
    block_size=st.integers(0, 64),
)
_fleets = st.lists(_views, max_size=6, unique_by=lambda v: v.instance_id)


@given(
    _fleets,
    st.sampled_from(sorted(POLICIES)),
    st.integers(0, 10**9),
    st.frozensets(st.sampled_from(["i0", "i1", "i2"])),
    st.booleans(),
)
def test_any_choice_is_possible_and_repeatable(fleet, policy, turn, avoid, prefer_whole):
    facts = {"turn": turn, "avoid": avoid, "prefer_whole": prefer_whole}
    route = choose(fleet, policy, **facts)
    assert route == choose(fleet, policy, **facts)
    by_id = {v.instance_id: v for v in fleet}
    if isinstance(route, Pair):
        prefill, decode = by_id[route.prefill], by_id[route.decode]
        assert prefill.role == "prefill"
        assert decode.role != "prefill"
        assert can_pair(prefill, decode)
        assert prefill.model == "m"
    elif isinstance(route, Whole):
        assert by_id[route.instance].model == "m"
    elif any(v.model == "m" for v in fleet):
        assert "differs" in route.reason
    else:
        assert route.reason


@given(_fleets, st.integers(0, 9))
def test_a_healthy_instance_is_never_passed_over_for_a_suspect(fleet, turn):
    alike = [v for v in fleet if v.kv_fingerprint == "f" and v.kv_connector == "shm"]
    route = choose(alike, turn=turn)
    by_id = {v.instance_id: v for v in fleet}
    if isinstance(route, Whole) and by_id[route.instance].is_suspect:
        # Then the healthy ones alone could not have served it.
        assert isinstance(choose([v for v in alike if not v.is_suspect], turn=turn), NoInstance)
