"""What the forecast learns, from times that are known exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.admission.forecast import Forecast, PromptTime, QueueFlow, excess_s, forecast


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0, 2),
    st.floats(1e-5, 1e-2),
    st.lists(st.integers(1, 20_000), min_size=8, max_size=100, unique=True),
)
def test_a_line_is_found_again(base, slope, sizes):
    prompts = PromptTime()
    for size in sizes:
        prompts.observe(size, base + slope * size)
    found_base, found_slope = prompts.line
    size = max(sizes)
    assert found_base + found_slope * size == pytest.approx(base + slope * size, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e3)), max_size=60))
def test_it_never_says_less_than_nothing(samples):
    prompts = PromptTime()
    for size, seconds in samples:
        prompts.observe(size, seconds)
        base, slope = prompts.line
        assert base >= 0.0 and slope >= 0.0


def test_it_follows_a_change():
    prompts = PromptTime()
    for slope in (0.001, 0.01):
        for size in range(1, 150):
            prompts.observe(size * 10, slope * size * 10)
    assert prompts.line[1] == pytest.approx(0.01, rel=0.1)


def test_the_flow_of_a_queue():
    flow = QueueFlow()
    assert flow.rate is None
    flow.began(100.0)
    for n in range(1, 20):
        flow.left(50, 100.0 + n * 0.5)
    assert flow.rate == pytest.approx(100.0)
    flow.began(1000.0)  # nobody waited in between: no time passed
    flow.left(50, 1000.5)
    assert flow.rate == pytest.approx(100.0)


def test_a_forecast_adds_queue_backlog_and_the_prompt_itself():
    prompts, flow = PromptTime(), QueueFlow()
    assert forecast(prompts, flow, 100, 1000, 1000) == Forecast(0.0, 0.0)  # nothing known
    for size in range(1, 11):
        prompts.observe(size * 100, 0.5 + 0.001 * size * 100)
    found = forecast(prompts, flow, 100, queued_before=2000, backlog=1000)
    assert (found.wait_s, found.own_s) == pytest.approx((3.0, 0.6))
    flow.began(0.0)
    flow.left(4000, 1.0)
    found = forecast(prompts, flow, 100, queued_before=2000, backlog=1000)
    assert found.wait_s == pytest.approx(1.5)


def test_excess_over_a_target():
    assert excess_s(Forecast(3.0, 0.5), 2.0) == 1.5
    assert excess_s(Forecast(1.0, 0.5), 2.0) < 0
    assert excess_s(Forecast(0.0, 50.0), 2.0) < 0  # nothing is before it: let it try
    assert excess_s(Forecast(1.0, 50.0), 2.0) > 0
