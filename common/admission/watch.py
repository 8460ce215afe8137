"""Metrics of a waiting room. No label ever names a tenant."""

from __future__ import annotations

from common.admission.admission import OUTCOMES, Admission
from common.metrics import SECONDS, Metrics


def watch_admission(metrics: Metrics, admission: Admission) -> None:
    metrics.gauge(
        "admission_queue_requests",
        "Sequences that wait to be sent out.",
        lambda: admission.num_waiting,
    )
    metrics.gauge(
        "admission_queue_tokens",
        "Prompt tokens of those.",
        lambda: admission.num_waiting_tokens,
    )
    waits = metrics.histogram(
        "admission_wait_seconds",
        "How long a sequence waited to be sent out, and what ended that.",
        SECONDS,
        labels=("outcome",),
    )
    for outcome in OUTCOMES:
        waits.labels(outcome)  # so that all show from the start

    admission.observe = lambda outcome, wait_s: waits.labels(outcome).observe(wait_s)
