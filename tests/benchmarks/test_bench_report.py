from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client_cost import ClientCost
from benchmarks.percentiles import deviation, mean, median, percentile
from benchmarks.report import METRICS, Run, details, request_line, summarize
from benchmarks.sample import Sample
from benchmarks.slo import Slo
from benchmarks.table import cautions, render
from common.errors import ConfigError

QUIET = ClientCost(0.0005, 0.001, 0.1)
numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


def sample(index=0, *, due=0.0, sent=None, arrivals=(0.2, 0.3, 0.4), **fields):
    """A request of one token per chunk; by default TTFT 200 ms, TPOT and ITL 100 ms."""
    sent = due if sent is None else sent
    defaults = {
        "released_s": due,
        "end_s": arrivals[-1] if arrivals else sent,
        "arrivals_s": arrivals,
        "input_tokens": 10,
        "output_tokens": len(arrivals),
        "wanted_tokens": len(arrivals),
    }
    return Sample(index, f"r{index}", due, sent_s=sent, **(defaults | fields))


def summary_of(*samples, duration=2.0, slo=None, percentiles=(50, 90, 99), cost=QUIET, **fields):
    run = Run(samples, 0.0, duration, cost, **fields)
    return summarize(run, metrics=METRICS, percentiles=percentiles, slo=slo)


@given(numbers, st.floats(0, 100))
def test_percentile_is_numpys(values, q):
    assert percentile(sorted(values), q) == pytest.approx(np.percentile(values, q), abs=1e-6)


@given(numbers)
def test_mean_median_and_deviation_are_numpys(values):
    assert mean(values) == pytest.approx(np.mean(values), abs=1e-6)
    assert median(values) == pytest.approx(np.median(values), abs=1e-6)
    assert deviation(values) == pytest.approx(np.std(values), abs=1e-5)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_of_nothing(values, q):
    with pytest.raises(ValueError):
        percentile(values, q)


def test_latencies_count_from_the_due_time():
    late = sample(due=1.0, sent=1.5, released_s=1.25, arrivals=(2.0, 2.1, 2.5))
    assert late.ttft_s == pytest.approx(1.0)
    assert late.itls_s == pytest.approx((0.1, 0.4))
    assert late.tpot_s == pytest.approx(0.25)
    assert late.e2el_s == pytest.approx(1.5)
    assert (late.lag_s, late.queue_s) == pytest.approx((0.25, 0.25))


def test_tpot_counts_tokens_not_chunks():
    coalesced = sample(arrivals=(1.0, 2.0), output_tokens=11)
    assert coalesced.tpot_s == pytest.approx(0.1)
    thick_start = sample(arrivals=(1.0, 2.0), chunk_tokens=(3, 5), output_tokens=8)
    assert thick_start.tpot_s == pytest.approx(0.2)


def test_one_token_has_no_tpot():
    assert sample(arrivals=(0.2,)).tpot_s is None
    assert sample(arrivals=(0.2,), output_tokens=3).tpot_s is None  # all in one chunk
    assert sample(arrivals=(0.2,)).itls_s == ()


def test_summary_by_hand():
    first = sample(0, arrivals=(0.1, 0.2, 0.3))
    second = sample(1, due=1.0, arrivals=(1.3, 1.6), input_tokens=20)
    failed = sample(2, arrivals=(0.5,), error="HTTP 500: no")
    summary = summary_of(first, second, failed, duration=2.0)
    assert (summary["completed"], summary["failed"]) == (2, 1)
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (30, 5)
    assert summary["request_throughput"] == 1.0
    assert summary["output_throughput"] == 2.5
    assert summary["total_token_throughput"] == 17.5
    assert summary["request_goodput"] is None
    assert summary["mean_ttft_ms"] == pytest.approx(200)
    assert summary["median_ttft_ms"] == summary["p50_ttft_ms"] == pytest.approx(200)
    assert summary["std_ttft_ms"] == pytest.approx(100)
    assert summary["p90_ttft_ms"] == pytest.approx(280)
    assert summary["mean_itl_ms"] == pytest.approx((100 + 100 + 300) / 3)
    assert summary["mean_tpot_ms"] == pytest.approx((100 + 300) / 2)
    assert summary["mean_e2el_ms"] == pytest.approx((300 + 600) / 2)
    assert summary["error_counts"] == {"HTTP 500: no": 1}


def test_names_that_readers_of_vllms_summaries_look_for():
    summary = summary_of(sample(), percentiles=(25, 99.9))
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p25", "p99.9"):
            assert isinstance(summary[f"{statistic}_{metric}_ms"], float)
    expected = {
        *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
        *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
        *("max_output_tokens_per_s", "max_concurrent_requests"),
    }
    assert expected <= summary.keys()


def test_peaks():
    overlap = [sample(0, arrivals=(0.1, 0.9)), sample(1, due=0.5, arrivals=(0.6, 1.5))]
    touching = sample(2, due=0.9, arrivals=(1.1, 1.2, 2.5))
    summary = summary_of(*overlap, touching)
    assert summary["max_concurrent_requests"] == 2
    assert summary["max_output_tokens_per_s"] == 3  # second 0: 0.1, 0.6, 0.9; second 1: three too


def test_nothing_completed():
    summary = summary_of(sample(arrivals=(), error="no"), slo=Slo(ttft_ms=1))
    assert summary["mean_ttft_ms"] is None
    assert summary["p99_itl_ms"] is None
    assert summary["max_output_tokens_per_s"] is None
    assert summary["request_goodput"] == 0
    assert "0 / 1" in render(summary, METRICS, (50, 90, 99))
    json.dumps(summary, allow_nan=False)


def test_an_empty_run_has_a_summary():
    summary = summary_of(duration=0.0, is_interrupted=True)
    assert summary["request_throughput"] == 0
    assert cautions(summary) == ["interrupted: partial results, 0 requests were in flight"]


# Goodput


def test_parse_slo():
    slo = Slo.parse("ttft_ms=200, tpot_ms=50.5")
    assert slo == Slo(ttft_ms=200, tpot_ms=50.5)
    assert slo.targets() == {"ttft_ms": 200, "tpot_ms": 50.5}


@pytest.mark.parametrize(
    "text",
    ["", "ttft_ms", "ttft=5", "ttft_ms=5,ttft_ms=6", "ttft_ms=x", "itl_ms=0", "e2el_ms=inf"],
)
def test_parse_slo_refuses(text):
    with pytest.raises(ConfigError, match="--slo"):
        Slo.parse(text)


def test_a_target_is_met_at_its_bound():
    exact = sample(arrivals=(0.25, 0.5))  # binary fractions: no rounding
    assert Slo(ttft_ms=250, tpot_ms=250, itl_ms=250, e2el_ms=500).met_by(exact)
    assert Slo(ttft_ms=249.9, e2el_ms=600).misses(exact) == ["ttft_ms"]


def test_itl_target_forgives_one_gap_in_a_hundred():
    def with_stalls(stalls, gaps):
        steps = [0.2] * stalls + [0.01] * (gaps - stalls)
        return sample(arrivals=tuple(float(t) for t in np.cumsum([0.1, *steps])))

    slo = Slo(itl_ms=50)
    assert slo.met_by(with_stalls(2, 300))
    assert not slo.met_by(with_stalls(4, 300))
    assert not slo.met_by(with_stalls(1, 20))
    assert slo.met_by(with_stalls(0, 20))


def test_one_token_meets_tpot_and_itl():
    assert Slo(tpot_ms=1, itl_ms=1).met_by(sample(arrivals=(0.2,)))


def test_goodput_by_hand():
    samples = [
        sample(0, arrivals=(0.1, 0.2)),  # good
        sample(1, arrivals=(0.5, 0.6)),  # TTFT
        sample(2, arrivals=(0.1, 0.4)),  # TPOT
        sample(3, arrivals=(0.5, 0.9)),  # both
        sample(4, arrivals=(0.1, 0.2), error="cut"),  # failed: both
    ]
    summary = summary_of(*samples, duration=4.0, slo=Slo(ttft_ms=200, tpot_ms=150))
    assert summary["request_goodput"] == 0.25
    assert summary["slo_attainment"] == 0.2
    assert summary["slo_misses"] == {"ttft_ms": 3, "tpot_ms": 3}
    assert summary["slo"] == {"ttft_ms": 200, "tpot_ms": 150}
    assert "20.0% met" in render(summary, METRICS, (50, 90, 99))


# Per request


def test_details_are_one_entry_per_request_in_order():
    samples = (sample(0), sample(1, due=0.1, arrivals=(), error="HTTP 500: no"))
    lists = details(Run(samples, 0.0, 1.0, QUIET))
    assert {len(values) for values in lists.values()} == {2}
    assert lists["errors"] == ["", "HTTP 500: no"]
    assert lists["output_lens"] == [3, 0]
    assert lists["ttfts"][1] is None


def test_a_request_line_can_be_added_up_again():
    line = request_line(sample(due=10.5, arrivals=(10.75, 11.0)), 10.0, Slo(ttft_ms=100))
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert line["due_s"] == 0.5
    assert line["ttft_s"] + sum(line["itls_s"]) == line["e2el_s"] == 0.5
    assert line["slo_missed"] == ["ttft_ms"]


# Cautions


def test_a_quiet_run_needs_no_caution():
    assert cautions(summary_of(sample())) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: summary_of(sample(), cost=ClientCost(0.03, 0.05, 0.1)), "event loop lagged 30.0"),
        (lambda: summary_of(sample(), cost=ClientCost(0.0, 0.0, 0.97)), "whole core"),
        (lambda: summary_of(sample(released_s=0.1)), "went out late"),
        (lambda: summary_of(sample(is_counted=False)), "1 answers without usage"),
        (lambda: summary_of(sample(output_tokens=6)), "carry 2.00 tokens"),
        (lambda: summary_of(sample(wanted_tokens=9)), "shorter than asked"),
        (lambda: summary_of(sample(), is_interrupted=True, num_cancelled=4), "4 requests were in"),
    ],
)
def test_caution(make, words):
    (caution,) = cautions(make())
    assert words in caution


def test_table_shows_each_metric():
    table = render(summary_of(sample()), METRICS, (50, 90, 99))
    row = next(line for line in table.splitlines() if line.startswith("TTFT"))
    assert row.split() == ["TTFT", "200.00", "200.00", "200.00", "200.00"]
    assert not math.isnan(float(row.split()[1]))
