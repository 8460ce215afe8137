"""Hand over or not: properties over made-up fleets and speeds, and what a simulated day shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.disaggregate import Load, compare
from common.request import EngineRequest, SamplingParams, TokenEvent
from common.wire import KVHandle
from proxy.choreography import Choreography
from proxy.disaggregation import Disaggregation, hand_over_cost, local_cost, token_limit
from proxy.estimates import Estimates
from proxy.observed import Observed
from proxy.policy import Pair, RequestFacts, Snapshot, Whole
from tests.proxy.test_policy import view

AUTO = Disaggregation("auto", itl_budget_s=0.05)
PAIR = Pair("p0", "d0")


def known(prefill_s=0.001, hand_over_s=0.01, decode_prefill_s=None):
    """Seconds per token, seconds per hand-over."""
    estimates = Estimates()
    for num_tokens in (100, 1000, 2000):
        for _ in range(4):
            estimates.prefilled("p0", num_tokens, prefill_s * num_tokens, 0.0)
            estimates.prefilled("d0", num_tokens, (decode_prefill_s or prefill_s) * num_tokens, 0.0)
            estimates.handed_over("p0", "d0", num_tokens, hand_over_s, 0.0)
    return estimates


def decide(estimates, num_tokens, *, policy=AUTO, cached=None, p=None, d=None, avoid=()):
    room = {"free_blocks": 10_000, "total_blocks": 10_000}
    views = view("p0", "prefill", **room, **(p or {})), view("d0", "decode", **room, **(d or {}))
    facts = RequestFacts(num_tokens, avoid=frozenset(avoid), cached_tokens=cached or {})
    return policy.decide(PAIR, Snapshot("m", views), facts, estimates, 1.0)


def test_always_and_never_leave_the_choice_to_the_policies():
    for mode in ("always", "never"):
        policy = Disaggregation(mode)
        assert decide(known(), 10, policy=policy) == PAIR


def test_as_long_as_nothing_is_known_prompts_are_handed_over():
    assert decide(Estimates(), 10) == PAIR
    estimates = Estimates()
    estimates.prefilled("p0", 100, 0.1, 0.0)
    assert decide(estimates, 10) == PAIR


def test_a_short_prompt_on_an_idle_instance_saves_the_hand_over():
    assert decide(known(), 30) == Whole("d0")


def test_streams_there_weigh_more_than_a_cheap_hand_over():
    assert decide(known(), 30, d={"num_requests": 1}) == PAIR
    assert decide(known(hand_over_s=0.2), 30, d={"num_requests": 1}) == Whole("d0")


def test_a_prompt_beyond_the_budget_is_handed_over_whatever_it_costs():
    for num_requests in (1, 20):
        slow = known(hand_over_s=30.0)
        assert decide(slow, 51, d={"num_requests": num_requests}) == PAIR
        assert decide(slow, 49, d={"num_requests": 1}) == Whole("d0")


def test_what_waits_there_counts_against_the_budget():
    slow = known(hand_over_s=30.0)
    assert decide(slow, 30, d={"num_requests": 1, "queued_tokens": 10}) == Whole("d0")
    assert decide(slow, 30, d={"num_requests": 1, "queued_tokens": 30}) == PAIR


def test_a_cached_prefix_on_d_makes_a_long_prompt_short():
    assert decide(known(), 2000, cached={"d0": 1980}) == Whole("d0")
    assert decide(known(), 2000, cached={"p0": 1980, "d0": 0}) == PAIR


def test_an_idle_d_helps_only_a_p_that_is_far_behind():
    assert decide(known(), 2000, p={"queued_tokens": 500}) == PAIR
    assert decide(known(), 2000, p={"queued_tokens": 5000}) == Whole("d0")
    assert decide(known(), 2000, p={"queued_tokens": 5000}, d={"num_requests": 1}) == PAIR


def test_who_failed_or_has_no_room_is_not_asked():
    assert decide(known(), 30, avoid=["d0"]) == PAIR
    assert decide(known(), 30, d={"is_suspect": True}) == PAIR
    full = view("d0", "decode", free_blocks=1, total_blocks=10)
    prefill = view("p0", "prefill")
    found = AUTO.decide(PAIR, Snapshot("m", (prefill, full)), RequestFacts(30), known(), 1.0)
    assert found == PAIR


def test_a_route_that_is_no_pair_stays():
    whole = Whole("d0")
    snapshot = Snapshot("m", (view("d0", "decode"),))
    assert AUTO.decide(whole, snapshot, RequestFacts(10), known(), 1.0) == whole


@settings(deadline=None)
@given(
    per_token=st.floats(1e-6, 0.1),
    decode_per_token=st.floats(1e-6, 0.1),
    hand_over_s=st.floats(0, 10),
    num_tokens=st.integers(1, 8000),
    queued=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)),
    num_requests=st.integers(0, 64),
    cached=st.tuples(st.integers(0, 8000), st.integers(0, 8000)),
    budget_s=st.floats(0.001, 1.0),
)
def test_running_streams_are_never_held_up_beyond_the_budget(
    per_token, decode_per_token, hand_over_s, num_tokens, queued, num_requests, cached, budget_s
):
    estimates = known(per_token, hand_over_s, decode_per_token)
    room = {"free_blocks": 10_000, "total_blocks": 10_000}
    prefill = view("p0", "prefill", queued_tokens=queued[0], **room)
    decode = view("d0", "decode", queued_tokens=queued[1], num_requests=num_requests, **room)
    facts = RequestFacts(num_tokens, cached_tokens={"p0": cached[0], "d0": cached[1]})
    policy = Disaggregation("auto", budget_s)
    route = policy.decide(PAIR, Snapshot("m", (prefill, decode)), facts, estimates, 1.0)
    apart = hand_over_cost(prefill, decode, facts, estimates, 1.0)
    here = local_cost(decode, facts, estimates, 1.0)
    assert apart is not None and here is not None
    if isinstance(route, Whole):
        assert here.total_s < apart.total_s, "only what is expected to be better"
        if num_requests:
            uncached = max(1, num_tokens - cached[1])
            assert uncached + queued[1] <= token_limit(decode, estimates, budget_s, 1.0)
            assert here.others_s <= budget_s * num_requests * 1.001 + 1e-9
    else:
        assert route == PAIR


# --- what is observed ----------------------------------------------------------------------------


def handed_over(request):
    machine = Choreography(request)
    machine.start()
    machine.routed(PAIR, 0.0)
    handle = KVHandle("00ff", "p0", "1", "tcp://127.0.0.1:1", "shm", "f", 3, 1)
    machine.accepted("p0", 1, handle, 0.0)
    return machine


def see(observed, estimates, machine, source, event, now):
    observed.first_event(estimates, machine, source, event, now)
    machine.tokens_came(source, 1, event, now)


def test_both_legs_of_a_hand_over_are_observed():
    request = EngineRequest("r", tuple(range(1000)), SamplingParams(10))
    machine, observed, estimates = handed_over(request), Observed(), Estimates()
    first = TokenEvent(
        "r", 0, (1,), num_cached_tokens=600, timings={"prefill_queue": 9.0, "prefill": 0.4}
    )
    second = TokenEvent("r", 1, (2,), timings={"decode_queue": 0.0, "first_step": 0.03})
    see(observed, estimates, machine, "p0", first, 5.0)
    see(observed, estimates, machine, "d0", second, 5.08)
    speed, way = estimates.prefill("p0", 6.0), estimates.hand_over("p0", "d0", 6.0)
    assert speed is not None and way is not None
    assert speed.seconds(400) == pytest.approx(0.4, rel=0.05)
    assert way.seconds(1000) == pytest.approx(0.05, rel=0.05)
    assert set(estimates._prefill) == {"p0"}, "a decode step is no prefill"


def test_what_d_computed_itself_is_no_hand_over():
    request = EngineRequest("r", tuple(range(1000)), SamplingParams(10))
    machine, observed, estimates = handed_over(request), Observed(), Estimates()
    timings = {"prefill": 0.5}
    see(observed, estimates, machine, "p0", TokenEvent("r", 0, (1,), timings=timings), 1.0)
    see(observed, estimates, machine, "d0", TokenEvent("r", 0, (1,), timings=timings), 9.0)
    assert estimates.hand_over("p0", "d0", 9.0) is None
    assert set(estimates._prefill) == {"p0", "d0"}


# --- a simulated day -----------------------------------------------------------------------------


@pytest.mark.parametrize("load", list(Load))
def test_auto_is_at_least_as_good_as_both_others(load):
    waits = {mode: result.cost_s for mode, result in compare(load, seed=1).items()}
    assert waits["auto"] <= 1.02 * min(waits["always"], waits["never"]), waits
