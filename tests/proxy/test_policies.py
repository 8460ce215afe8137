"""What each policy promises, beyond choosing somebody who can do it (test_policy.py)."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import PolicyName
from proxy.policies import POLICIES
from proxy.policy import RequestFacts
from tests.proxy.test_policy import view

PREFILLS = [view(f"p{i}", "prefill") for i in range(4)]


def pick(name, candidates, role=0, **facts):
    return POLICIES[name][role](
        candidates, RequestFacts(**{"num_tokens": 100, **facts})
    ).instance_id


def test_every_policy_is_on_the_command_line():
    assert set(get_args(PolicyName)) == set(POLICIES)


@pytest.mark.parametrize("name", ["random", "power_of_two"])
def test_draws_are_even_and_repeatable_and_differ_between_proxies(name):
    draws = [pick(name, PREFILLS, turn=turn, seed=1) for turn in range(2000)]
    assert draws == [pick(name, PREFILLS, turn=turn, seed=1) for turn in range(2000)]
    assert draws != [pick(name, PREFILLS, turn=turn, seed=2) for turn in range(2000)]
    assert all(420 < count < 580 for count in Counter(draws).values())


def test_power_of_two_never_takes_the_worst_and_mostly_the_better():
    fleet = [view(f"p{i}", "prefill", queued_tokens=i * 10) for i in range(4)]
    counts = Counter(pick("power_of_two", fleet, turn=turn) for turn in range(2000))
    assert "p3" not in counts
    assert counts["p0"] > counts["p1"] > counts["p2"] > 0
    assert pick("power_of_two", fleet[:1]) == "p0"


def test_a_session_stays_and_only_those_of_a_lost_instance_move():
    sessions = [f"user-{i}" for i in range(400)]
    homes = {s: pick("session", PREFILLS, turn=i, session_id=s) for i, s in enumerate(sessions)}
    assert all(60 < count < 140 for count in Counter(homes.values()).values())
    for s, home in homes.items():
        now = pick("session", PREFILLS[:3], session_id=s)
        assert now == home or home == "p3"
    busy = [view("p0", "prefill", queued_tokens=9), *PREFILLS[1:]]
    assert {pick("session", busy, turn=turn) for turn in range(9)} == {"p1", "p2", "p3"}


# --- prefix_aware --------------------------------------------------------------------------------


_loads = st.integers(0, 5000)


@given(st.lists(st.tuples(_loads, _loads), min_size=1, max_size=6), st.integers(1, 4000))
def test_prefix_aware_takes_the_least_work(fleet, num_tokens):
    """The oracle counts tokens: what is queued there, and thrice what of the prompt is not."""
    views = [view(f"p{i}", "prefill", queued_tokens=q) for i, (q, _) in enumerate(fleet)]
    cached = {f"p{i}": c for i, (_, c) in enumerate(fleet)}
    chosen = pick("prefix_aware", views, num_tokens=num_tokens, cached_tokens=cached)
    costs = {f"p{i}": q + 3 * max(1, num_tokens - c) for i, (q, c) in enumerate(fleet)}
    assert costs[chosen] == min(costs.values())


@given(_loads, st.integers(0, 999), st.integers(0, 999), st.integers(0, 9))
def test_with_equal_load_more_hits_win(load, one, other, turn):
    views = [view(name, "prefill", queued_tokens=load) for name in ("p0", "p1")]
    cached = {"p0": one, "p1": other}
    chosen = pick("prefix_aware", views, num_tokens=1000, turn=turn, cached_tokens=cached)
    assert cached[chosen] == max(one, other)


def test_a_hot_instance_is_left_when_its_queue_costs_more_than_computing_again():
    cached = {"p0": 800}

    def chosen(queued):
        fleet = [view("p0", "prefill", queued_tokens=queued), view("p1", "prefill")]
        return pick("prefix_aware", fleet, num_tokens=1000, cached_tokens=cached)

    assert [chosen(q) for q in (0, 2399, 2401, 5000)] == ["p0", "p0", "p1", "p1"]


def test_decode_prefers_who_need_fetch_less_but_only_among_equals():
    cached = {"d0": 64}
    equal = [view("d0", "decode"), view("d1", "decode")]
    assert {pick("prefix_aware", equal, 1, turn=t, cached_tokens=cached) for t in (0, 1)} == {"d0"}
    busier = [view("d0", "decode", num_requests=1), view("d1", "decode")]
    assert pick("prefix_aware", busier, 1, cached_tokens=cached) == "d1"


def test_whole_requests_go_to_the_prefix_until_too_much_runs_beside_it():
    cached = {"b0": 64}

    def chosen(blocks_in_use):
        fleet = [view("b0", "both", free_blocks=100 - blocks_in_use), view("b1", "both")]
        return pick("prefix_aware", fleet, 1, prefer_whole=True, cached_tokens=cached)

    assert [chosen(blocks) for blocks in (0, 47, 49, 60)] == ["b0", "b0", "b1", "b1"]
