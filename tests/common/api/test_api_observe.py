"""Request metrics with a hand-moved clock."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.api.observe import RequestMetrics
from common.errors import Overloaded
from common.metrics import Metrics


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics():
    return Metrics(model_name="demo")


@pytest.fixture
def observed(metrics, clock):
    return RequestMetrics(metrics, clock)


def value(metrics, name, **labels):
    """The sample of this name, None if it was never counted."""
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name == f"xpyd:{name}" and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_a_request_from_first_to_last_token(observed, metrics, clock):
    one = observed.observe("demo", 7, started=99.0)
    one.submitted()
    assert observed.num_running == 1
    clock.now = 100.5
    one.tokens(1)
    clock.now = 100.7
    one.tokens(1)
    clock.now = 101.1
    one.tokens(2)
    one.finished("stop")
    one.closed()
    assert observed.num_running == 0
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(1.5)
    assert value(metrics, "inter_token_latency_seconds_sum") == pytest.approx(0.2 + 0.2)
    assert value(metrics, "inter_token_latency_seconds_count") == 2
    tpot = value(metrics, "request_time_per_output_token_seconds_sum")
    assert tpot == pytest.approx(0.6 / 3)
    assert value(metrics, "e2e_request_latency_seconds_sum") == pytest.approx(2.1)
    assert value(metrics, "prompt_tokens_total") == 7
    assert value(metrics, "generation_tokens_total") == 4
    assert value(metrics, "request_success_total", finished_reason="stop") == 1


def test_an_abort_is_an_end_without_latency(observed, metrics):
    one = observed.observe("demo", 7, started=99.0)
    one.submitted()
    one.tokens(1)
    one.closed()
    assert value(metrics, "request_success_total", finished_reason="abort") == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == 0
    assert observed.num_running == 0


def test_a_refusal_is_no_end(observed, metrics):
    one = observed.observe("demo", 7, started=99.0)
    one.submitted()
    one.finished("error")
    one.closed()
    observed.rejected(Overloaded("full"))
    assert value(metrics, "request_success_total") is None
    assert value(metrics, "rejections_total", reason="queue_full") == 1
    assert value(metrics, "prompt_tokens_total") == 0


def test_a_failure_in_mid_answer_is_counted_as_one(observed, metrics):
    one = observed.observe("demo", 7, started=99.0)
    one.submitted()
    one.tokens(1)
    one.finished("error")
    one.closed()
    assert value(metrics, "request_success_total", finished_reason="error") == 1


def test_the_model_is_named_where_several_are_served(clock):
    metrics = Metrics()  # a proxy learns the names late
    one = RequestMetrics(metrics, clock).observe("org/other", 3, started=0)
    one.submitted()
    one.tokens(1)
    assert value(metrics, "prompt_tokens_total", model_name="org/other") == 3
