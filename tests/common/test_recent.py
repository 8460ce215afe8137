"""The last minute, with a hand-moved clock; percentiles against sorted lists."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from common.metrics import SECONDS, Metrics
from common.recent import WINDOW_S, Distribution, Rate


def test_percentiles_are_within_five_percent():
    random.seed(3)
    values = [random.lognormvariate(-4, 1.2) for _ in range(5000)]
    seen = Distribution(SECONDS, 0.0)
    for value in values:
        seen.observe(value, 1.0)
    found, ordered = seen.percentiles(2.0), sorted(values)
    assert found.count == 5000
    for share, estimate in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert estimate == pytest.approx(ordered[int(5000 * share) - 1], rel=0.05)


def test_nothing_observed_has_no_percentiles():
    assert Distribution(SECONDS, 0.0).percentiles(1.0).p50 is None


@given(
    st.lists(st.tuples(st.floats(0, 90), st.floats(0.001, 1.0)), max_size=60),
    st.floats(0, 200),
)
def test_what_is_older_than_the_window_is_forgotten(gaps, quiet_s):
    seen, now = Distribution(SECONDS, 0.0), 0.0
    times = []
    for gap_s, value in gaps:
        now += gap_s
        seen.observe(value, now)
        times.append(now)
    now += quiet_s
    count = seen.percentiles(now).count
    surely = sum(at > now - WINDOW_S for at in times)
    perhaps = sum(at >= now - WINDOW_S - 5.001 for at in times)  # the oldest slice is whole
    assert surely <= count <= perhaps
    assert seen.count == len(times)


def test_a_rate_is_per_second_of_the_window():
    rate = Rate(0.0)
    rate.inc(30, 1.0)
    assert rate.per_second(2.0) == pytest.approx(15.0)  # as old as the process
    assert rate.per_second(59.0) == pytest.approx(30 / 59)
    assert rate.per_second(WINDOW_S + 20) == 0.0
    assert rate.count == 30


@given(st.lists(st.floats(0.0, 700.0), max_size=50))
def test_exported_buckets_equal_those_of_the_prometheus_client(values):
    metrics, registry = Metrics(model_name="m"), CollectorRegistry()
    ours = metrics.distribution("t", "Help.", SECONDS, clock=lambda: 0.0)
    theirs = Histogram("t", "Help.", buckets=SECONDS, registry=registry)
    for value in values:
        ours.labels().observe(value, 0.0)
        theirs.observe(value)
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found[sample.name.removeprefix("xpyd:"), sample.labels.get("le")] = sample.value
    for metric in registry.collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                key = (sample.name, sample.labels.get("le"))
                assert math.isclose(found[key], sample.value, abs_tol=1e-9), key


def test_a_name_is_taken_once():
    metrics = Metrics()
    metrics.distribution("same", "Help.")
    with pytest.raises(ValueError, match="same"):
        metrics.distribution("same", "Help.")
