"""What several workers know, told as one: pages of metrics and the answer of /status."""

from __future__ import annotations

import json
import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.api.observe import RequestMetrics
from common.metrics import Metrics
from common.recent import Distribution, added, bars, percentiles_of
from proxy.metrics_pages import add_pages, counts_of
from proxy.relay import Fleet
from proxy.status import own_part
from proxy.whole_status import add_counts, whole, whole_instances

PAGE = """# HELP x_requests_total Requests so far.
# TYPE x_requests_total counter
x_requests_total{model_name="a b",status="200"} %d
# HELP x:running Now.
# TYPE x:running gauge
x:running %d
# HELP x:instances Odd "labels".
# TYPE x:instances gauge
x:instances{role="1, {2} \\"3\\"",state="ready"} 2
"""


def samples(page):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_pages_add_up_and_what_all_see_is_shown_once():
    page = add_pages([PAGE % (7, 2), PAGE % (5, 1)])
    assert samples(page) == {
        ("x_requests_total", "a b", "200"): 12.0,
        ("x:running",): 3.0,
        ("x:instances", '1, {2} "3"', "ready"): 2.0,
    }
    assert page.count("# TYPE x:running") == 1
    assert add_pages([]) == counts_of("") == ""
    assert add_pages([page]) == page


def test_of_the_dead_only_counts_are_left():
    assert samples(counts_of(PAGE % (7, 2))) == {("x_requests_total", "a b", "200"): 7.0}


def made(values, *, reason="stop"):
    """The metrics of a process that saw first tokens after so many seconds."""
    clock = [0.0]
    metrics = Metrics()
    observed = RequestMetrics(metrics, lambda: clock[0])
    for seconds in values:
        one = observed.observe("m", 8, clock[0])
        one.submitted()
        clock[0] += seconds
        one.tokens(1)
        one.finished(reason)
        one.closed()
    return metrics, observed


def test_pages_of_real_metrics_are_those_of_one_process():
    """Histograms too: every bucket and sum, as one process would have counted."""
    first, second = [0.01, 0.2], [0.03, 0.03, 4.0]
    pages = [made(values)[0].render().decode() for values in (first, second)]
    alone = samples(made(first + second)[0].render().decode())
    found = samples(add_pages(pages))
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        if not name[0].endswith("_created"):
            assert found[name] == pytest.approx(value), name


def test_percentiles_of_several_are_those_of_one():
    random.seed(5)
    each = [[random.lognormvariate(-3, 1) for _ in range(400)] for _ in range(3)]
    seen = [Distribution((0.01, 0.1, 1.0, 10.0), 0.0) for _ in range(4)]
    for number, values in enumerate(each):
        for value in values:
            seen[number].observe(value, 1.0)
            seen[3].observe(value, 1.0)
    over_the_wire = [json.loads(json.dumps(bars([one], 2.0))) for one in seen[:3]]
    assert percentiles_of(added(over_the_wire)) == seen[3].percentiles(2.0)
    assert percentiles_of([]).p50 is None


def test_counts_within_counts_are_added():
    one, other = {"a": 1, "by": {"x": 2}}, {"a": 2, "by": {"x": 1, "y": 4}}
    assert add_counts([one, other]) == {"a": 3, "by": {"x": 3, "y": 4}}


def test_instances_are_shown_once_with_the_requests_of_all():
    found = whole_instances(
        [
            [{"id": "d", "requests": 2, "state": "ready"}],
            [{"id": "d", "requests": 3}, {"id": "a", "requests": 0}],
        ]
    )
    assert found == [
        {"id": "a", "requests": 0},
        {"id": "d", "requests": 5, "state": "ready"},
    ]


def test_one_status_of_two_workers():
    parts = []
    for number, times in enumerate(([0.01], [0.01, 0.05])):
        fleet = Fleet()
        fleet.counts.requests = 10 + number
        fleet.counts.rejections["queue_full"] = 1
        fleet.failures.note(100.0 + number, "attempt failed", "no", instance=f"d{number}")
        fleet.pairs.handed_over(("p", "d"), {"transfer": 0.01}, fleet.began)
        part = own_part(fleet, made(times)[1])
        parts.append(json.loads(json.dumps({**part, "worker": {"number": number, "pid": 7}})))
        parts[-1]["links"] = [
            {"prefill": "p", "decode": "d", "transfer": [[0.01, 0.02, 1]], "bytes_per_s": 1.5}
        ]
    found = whole(parts[::-1], 3)
    assert found["counts"]["requests"] == 21
    assert found["counts"]["rejections"] == {"queue_full": 2}
    assert [failure["instance"] for failure in found["failures"]] == ["d1", "d0"]
    assert found["recent"]["ttft"]["count"] == 3
    (link,) = found["links"]
    assert (link["handovers"], link["bytes_per_s"]) == (2, 3.0)
    assert 0.01 <= link["p50"] <= 0.02 and "transfer" not in link
    assert found["workers"]["count"] == 3
    assert [worker["number"] for worker in found["workers"]["answered"]] == [0, 1]
    alone = whole([parts[0]])
    assert alone["workers"] is None and "worker" not in alone
