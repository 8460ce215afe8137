"""Token buckets against what one may take per minute."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from common.admission.rate_limit import RateLimits, Rates

moments = st.lists(
    st.tuples(st.floats(0, 20), st.integers(1, 30)), min_size=1, max_size=200
)  # (seconds since the one before, how many wanted)


@settings(max_examples=60, deadline=None)
@given(moments, st.integers(1, 100))
def test_no_minute_has_more_than_two_buckets(plan, limit):
    """A full bucket and what flows in meanwhile; a take larger than the bucket counts once."""
    rates, limits, now = Rates(tokens=limit), RateLimits(), 0.0
    taken = []
    for pause, amount in plan:
        now += pause
        if limits.take_if_enough("t", rates, "tokens", amount, now) == 0.0:
            taken.append((now, amount))
    for start, _ in taken:
        inside = [amount for at, amount in taken if start <= at <= start + 60]
        assert sum(inside) <= 2 * limit + max(0, max(inside) - limit) + 1e-6


@settings(max_examples=60, deadline=None)
@given(moments, st.integers(1, 100))
def test_who_waits_as_told_gets_it(plan, limit):
    rates, limits, now = Rates(tokens=limit), RateLimits(), 0.0
    for pause, amount in plan:
        now += pause
        wait_s = limits.take_if_enough("t", rates, "tokens", amount, now)
        assert 0.0 <= wait_s < math.inf
        if not wait_s:
            continue
        if wait_s > 1e-3:
            assert limits.take_if_enough("t", rates, "tokens", amount, now + wait_s * 0.9) > 0.0
        now += wait_s + 1e-6
        assert limits.take_if_enough("t", rates, "tokens", amount, now) == 0.0


def test_tenants_and_units_have_buckets_of_their_own():
    limits, rates = RateLimits(), Rates(requests=2, tokens=100)
    for _ in range(2):
        assert limits.take_if_enough("a", rates, "requests", 1, 0.0) == 0.0
    assert limits.take_if_enough("a", rates, "requests", 1, 0.0) == 30.0
    assert limits.take_if_enough("b", rates, "requests", 1, 0.0) == 0.0
    assert limits.take_if_enough("a", rates, "tokens", 100, 0.0) == 0.0
    assert limits.take_if_enough("a", Rates(), "requests", 10**9, 0.0) == 0.0


def test_answers_may_overdraw_and_are_paid_back():
    limits, rates = RateLimits(), Rates(tokens=60)
    limits.take("a", rates, "tokens", 90, 0.0)
    (reading,) = limits.read("a", rates, 0.0)
    assert (reading.limit, reading.remaining, reading.full_in_s) == (60, 0, 90.0)
    assert limits.take_if_enough("a", rates, "tokens", 1, 0.0) == 31.0
    assert limits.read("a", rates, 45.0)[0].remaining == 15
    assert limits.read("a", rates, 1000.0)[0].remaining == 60


def test_what_was_not_let_in_is_given_back():
    limits, rates = RateLimits(), Rates(tokens=60)
    assert limits.take_if_enough("a", rates, "tokens", 60, 0.0) == 0.0
    limits.take("a", rates, "tokens", -60, 30.0)
    assert limits.read("a", rates, 30.0)[0].remaining == 60


def test_a_changed_limit_counts_at_once():
    limits = RateLimits()
    limits.take("a", Rates(requests=10), "requests", 10, 0.0)
    assert limits.take_if_enough("a", Rates(requests=60), "requests", 1, 1.0) == 0.0
    assert limits.read("a", Rates(requests=5), 100.0)[0].remaining == 5
