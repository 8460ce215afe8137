from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.arrivals import arrival_times, read_trace
from common.errors import ConfigError


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_spread_of_a_gamma_distribution(burstiness):
    times = np.array(arrival_times(20_000, 50.0, burstiness, seed=3))
    gaps = np.diff(times, prepend=0.0)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50.0)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_burstiness_one_is_exponential():
    gaps = np.diff(arrival_times(20_000, 10.0, 1.0, seed=1), prepend=0.0)
    for multiple in (0.5, 1.0, 2.0):
        beyond = float(np.mean(gaps > multiple * gaps.mean()))
        assert beyond == pytest.approx(math.exp(-multiple), abs=0.015)


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_offers_exactly_the_wanted_rate(seed):
    assert arrival_times(40, 8.0, 1.0, seed)[-1] == pytest.approx(40 / 8.0)


def test_seed_decides_the_times():
    assert arrival_times(10, 5.0, 1.0, seed=7) == arrival_times(10, 5.0, 1.0, seed=7)
    assert arrival_times(10, 5.0, 1.0, seed=7) != arrival_times(10, 5.0, 1.0, seed=8)


def test_the_two_ends_of_burstiness_and_rate():
    assert arrival_times(4, math.inf, 1.0, seed=0) == [0.0] * 4
    assert arrival_times(4, 2.0, math.inf, seed=0) == [0.5, 1.0, 1.5, 2.0]
    assert arrival_times(0, 2.0, 1.0, seed=0) == []
    assert arrival_times(3, 2.0, 1e-300, seed=0) == [1.5] * 3  # every gap underflows


@pytest.mark.parametrize(("rate", "burstiness"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, -2)])
def test_refuses_what_is_no_rate(rate, burstiness):
    with pytest.raises(ConfigError):
        arrival_times(3, rate, burstiness, seed=0)


def test_trace_file(tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("# a recorded minute\n0\n0.5\n\n0.5  # two at once\n2e1\n")
    assert read_trace(trace) == [0.0, 0.5, 0.5, 20.0]


@pytest.mark.parametrize(
    "text", ["1\n0.5\n", "-1\n", "nan\n", "inf\n", "soon\n", "", "# nothing\n"]
)
def test_trace_file_refused(tmp_path, text):
    trace = tmp_path / "trace"
    trace.write_text(text)
    with pytest.raises(ConfigError, match="--trace-file"):
        read_trace(trace)


def test_trace_file_missing(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace(tmp_path / "none")
