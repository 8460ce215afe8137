"""Prometheus pages, read back with Prometheus's own parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.metrics import Metrics


def read(metrics):
    """{(sample name, own labels): value}, without the labels that every metric has."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "demo"
            assert labels.pop("engine") == "0"
            found[(sample.name, tuple(sorted(labels.items())))] = sample.value
    return found


def test_gauges_are_asked_at_each_scrape():
    metrics = Metrics(model_name="demo")
    values = [1.0]
    metrics.gauge("num_requests_running", "Now.", lambda: values[0])
    assert read(metrics) == {("xpyd:num_requests_running", ()): 1.0}
    values[0] = 7.0
    assert read(metrics) == {("xpyd:num_requests_running", ()): 7.0}


def test_counters_get_total_on_the_wire():
    metrics = Metrics(model_name="demo")
    plain = metrics.counter("prompt_tokens", "Count.")
    labelled = metrics.counter("rejections", "Count.", ("reason",))
    assert read(metrics) == {("xpyd:prompt_tokens_total", ()): 0.0}
    plain.inc(4)
    labelled.labels("queue_full").inc()
    assert read(metrics) == {
        ("xpyd:prompt_tokens_total", ()): 4.0,
        ("xpyd:rejections_total", (("reason", "queue_full"),)): 1.0,
    }


def test_counts_that_somebody_else_keeps():
    metrics = Metrics(model_name="demo")
    metrics.counter_from("kv_expired", "Count.", lambda: 3)
    metrics.counters_from("hits", "Count.", lambda: {("a",): 1, ("b",): 2}, ("kind",))
    assert read(metrics) == {
        ("xpyd:kv_expired_total", ()): 3.0,
        ("xpyd:hits_total", (("kind", "a"),)): 1.0,
        ("xpyd:hits_total", (("kind", "b"),)): 2.0,
    }


def test_histograms():
    metrics = Metrics(model_name="demo")
    metrics.histogram("time_to_first_token_seconds", "Time.", (0.1, 1.0)).observe(0.5)
    found = read(metrics)
    assert found[("xpyd:time_to_first_token_seconds_bucket", (("le", "0.1"),))] == 0
    assert found[("xpyd:time_to_first_token_seconds_bucket", (("le", "1.0"),))] == 1
    assert found[("xpyd:time_to_first_token_seconds_sum", ())] == 0.5


@pytest.mark.parametrize("prefix", ["vllm", "vllm:"])
def test_another_prefix_for_known_dashboards(prefix):
    metrics = Metrics(prefix, "demo")
    metrics.gauge("num_requests_running", "Now.", lambda: 1)
    assert read(metrics) == {("vllm:num_requests_running", ()): 1.0}


def test_a_gauge_that_fails_spoils_only_itself(caplog):
    metrics = Metrics(model_name="demo")
    metrics.gauge("broken", "Fails.", lambda: 1 / 0)
    metrics.gauge("fine", "Works.", lambda: 2)
    assert read(metrics) == {("xpyd:fine", ()): 2.0}
    assert "broken" in caplog.text


def test_a_name_is_taken_once():
    metrics = Metrics(model_name="demo")
    metrics.gauge("load", "One.", lambda: 1)
    with pytest.raises(ValueError, match="load"):
        metrics.gauge("load", "Two.", lambda: 2)


def test_one_app_may_serve_several_models():
    metrics = Metrics()
    counter = metrics.counter("prompt_tokens", "Count.")
    counter.labels(model_name="demo").inc(2)
    assert read(metrics) == {("xpyd:prompt_tokens_total", ()): 2.0}
