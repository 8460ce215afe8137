"""Lines through observations: right where they are right, harmless where they are not."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.estimates import FRESH_S, HALF_LIFE_S, Estimates, Line

OBSERVATIONS = st.lists(
    st.tuples(
        st.integers(0, 200_000),
        st.floats(0, 1e4, allow_nan=False),
        st.floats(-10, 1000, allow_nan=False),
    ),
    max_size=40,
)


def fitted(observations, now=0.0):
    line = Line()
    for num_tokens, seconds in observations:
        now += 0.1
        line = line.after(num_tokens, seconds, now)
    return line


def test_a_line_without_noise_is_found():
    line = fitted([(n, 0.02 + n * 0.001) for n in (64, 512, 2048, 100, 900) * 4])
    for num_tokens in (1, 64, 1000, 4096):
        assert line.seconds(num_tokens) == pytest.approx(0.02 + num_tokens * 0.001, rel=0.05)


def test_one_length_only_still_says_something_of_others():
    line = fitted([(1000, 0.5)] * 10)
    assert line.seconds(1000) == pytest.approx(0.5, rel=0.02)
    assert 0.0 <= line.seconds(100) <= line.seconds(1000) <= line.seconds(4000)
    assert line.seconds(4000) > 1.0, "mostly by tokens: that is what prefill is"


def test_noise_averages_out():
    rng = random.Random(4)
    lengths = [rng.randrange(50, 4000) for _ in range(300)]
    line = fitted([(n, (0.01 + n * 0.0005) * rng.uniform(0.8, 1.2)) for n in lengths])
    assert line.seconds(2000) == pytest.approx(1.01, rel=0.1)


def test_one_stall_moves_little():
    calm = fitted([(n, n * 0.001) for n in (100, 1000, 2000) * 5])
    after = calm.after(1000, 600.0, 10.0)
    assert after.seconds(1000) < 2 * calm.seconds(1000)


def test_what_changed_is_learnt_again():
    line = fitted([(n, n * 0.001) for n in (100, 1000, 2000) * 5])
    now = 10 * HALF_LIFE_S
    for num_tokens in (100, 1000, 2000):
        line = line.after(num_tokens, num_tokens * 0.003, now)
    assert line.seconds(1500) == pytest.approx(4.5, rel=0.2)


@settings(deadline=None)
@given(OBSERVATIONS, st.integers(0, 300_000), st.integers(0, 300_000))
def test_never_negative_never_less_for_more(observations, one, other):
    line = Line()
    for num_tokens, seconds, now in observations:
        line = line.after(num_tokens, seconds, now)
    less, more = sorted((one, other))
    assert 0.0 <= line.seconds(less) <= line.seconds(more)
    assert math.isfinite(line.seconds(more))


@settings(deadline=None)
@given(OBSERVATIONS, st.floats(0, 100))
def test_as_many_tokens_as_fit_take_no_longer(observations, budget):
    line = Line()
    for num_tokens, seconds, now in observations:
        line = line.after(num_tokens, seconds, now)
    tokens = line.tokens_within(budget)
    assert tokens >= 0
    if 0 < tokens < math.inf:
        assert line.seconds(tokens) <= budget * 1.001 + 1e-9


def test_who_has_not_been_seen_lately_is_judged_by_all():
    estimates = Estimates()
    assert estimates.prefill("d0", 0.0) is None
    assert estimates.hand_over("p0", "d0", 0.0) is None
    for _ in range(5):
        estimates.prefilled("p0", 1000, 1.0, 0.0)
        estimates.prefilled("d0", 1000, 3.0, 0.0)
        estimates.handed_over("p0", "d0", 1000, 0.02, 0.0)
    own, anybodys = estimates.prefill("d0", 1.0), estimates.prefill("new", 1.0)
    assert own is not None and anybodys is not None
    assert own.seconds(1000) == pytest.approx(3.0, rel=0.05)
    assert 1.0 < anybodys.seconds(1000) < 3.0
    assert estimates.prefill("d0", FRESH_S + 1.0) == anybodys
    assert estimates.hand_over("p1", "d0", 1.0) is not None


def test_those_who_have_gone_are_forgotten():
    estimates = Estimates()
    estimates.prefilled("p0", 10, 1.0, 0.0)
    estimates.prefilled("p1", 10, 2.0, 0.0)
    estimates.handed_over("p0", "d0", 10, 0.1, 0.0)
    estimates.handed_over("p1", "d0", 10, 0.1, 0.0)
    estimates.keep(["p1", "d0"])
    assert set(estimates._prefill) == {"p1"}
    assert set(estimates._hand_over) == {("p1", "d0")}
