"""What the proxy knows, as plain values for `/status`, `/instances` and the metrics."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import msgspec

from common.api.observe import RequestMetrics
from common.metrics import Metrics
from common.version import VERSION
from proxy.membership import Member, State
from proxy.relay import Fleet

STATES = ("connecting", "ready", "suspect", "draining", "dead")
ROLES = ("prefill", "decode", "both")


def describe_instances(fleet: Fleet) -> list[dict[str, Any]]:
    members = sorted(fleet.membership.members.items())
    return [_describe(fleet, member) for _, member in members]


def own_part(fleet: Fleet, observed: RequestMetrics) -> dict[str, Any]:
    """What this process knows, as `whole_status.whole` takes it: of the last minute bars, not
    percentiles."""
    return {
        **describe_fleet(fleet),
        "recent": observed.gained(),
        "links": _describe_links(fleet),
        "failures": [asdict(failure) for failure in fleet.failures],
        "now": time.time(),
        "uptime_s": round(time.monotonic() - fleet.began, 1),
        "version": VERSION,
    }


def describe_fleet(fleet: Fleet) -> dict[str, Any]:
    membership, registry = fleet.membership, fleet.links.registry
    usable = Counter(
        member.info.role for member in membership.members.values() if state_of(member) == "ready"
    )
    topology = f"{usable['prefill']}P{usable['decode']}D"
    return {
        "model": fleet.served_model(),
        "is_ready": fleet.is_ready(),
        "is_draining": fleet.is_draining,
        "topology": topology + (f"+{usable['both']} both" if usable["both"] else ""),
        "requests_in_flight": fleet.num_in_flight,
        "requests_queued": fleet.admission.num_waiting,
        "requests_waiting": fleet.num_waiting,
        "counts": asdict(fleet.counts),
        "instances": describe_instances(fleet),
        "prefixes": _describe_prefixes(fleet),
        "controller": fleet.advice(),
        "watched": [
            {"address": t.address, "source": t.source, "complaint": t.complaint}
            for t in membership.targets.values()
        ],
        "refused": dict(membership.refusals),
        "registry": None
        if registry is None
        else {
            "endpoint": registry.endpoint,
            "messages_refused": registry.refused,
            "peers_denied": registry.denied,
            "registrations_refused": membership.num_refused,
        },
    }


def state_of(member: Member) -> str:
    if member.is_draining and member.state is not State.DEAD:
        return "draining"
    return member.state.value


def register_metrics(metrics: Metrics, fleet: Fleet) -> None:
    counts = fleet.counts
    metrics.gauges(
        "instances",
        "Known instances.",
        lambda: _count_instances(fleet),
        labels=("role", "state"),
    )
    metrics.gauge(
        "num_requests_running",
        "Requests that some instance works on.",
        lambda: fleet.num_in_flight - fleet.num_waiting,
    )
    metrics.gauge(
        "num_requests_waiting",
        "Requests that wait for room, or for another instance.",
        lambda: fleet.admission.num_waiting + fleet.num_waiting,
    )
    metrics.counter_from(
        "routed_apart",
        "Attempts on a prefill and a decode instance.",
        lambda: counts.routed_apart,
    )
    metrics.counter_from(
        "kv_other_sources",
        "Failed KV loads that were tried again from another instance with the same KV.",
        lambda: counts.other_sources,
    )
    metrics.counter_from("routed_whole", "Attempts on one instance.", lambda: counts.routed_whole)
    metrics.counter_from(
        "migrations", "Attempts after a request's first.", lambda: counts.migrations
    )
    metrics.counter_from(
        "requests_lost", "Accepted requests that ended in an error.", lambda: counts.failed
    )
    metrics.counter_from(
        "instances_lost", "Deaths and broken links of instances.", lambda: counts.lost_instances
    )
    metrics.counter_from(
        "registry_denied_peers",
        "Handshakes on the registry that ended without the cluster key.",
        lambda: 0 if fleet.links.registry is None else fleet.links.registry.denied,
    )
    metrics.counter_from(
        "registry_refused",
        "Registry messages that were no messages, or not believed.",
        lambda: fleet.membership.num_refused + _num_garbage(fleet),
    )


def _describe_links(fleet: Fleet) -> list[dict[str, Any]]:
    """Which pairs handed over in the last minute, and how fast. Seconds."""
    return list(map(asdict, fleet.pairs.recent(fleet.membership.members, time.monotonic())))


def _describe_prefixes(fleet: Fleet) -> dict[str, int] | None:
    """None: no policy asks for them."""
    if fleet.prefixes is None:
        return None
    return {
        "instances_followed": fleet.prefixes.num_followed,
        "blocks": fleet.prefixes.index.num_blocks,
        "blocks_left_out": fleet.prefixes.index.num_ignored,
        "resets": fleet.prefixes.num_resets,
        "cached_tokens_routed": fleet.counts.cached_tokens,
    }


def _count_instances(fleet: Fleet) -> dict[tuple[str, ...], float]:
    found: Counter[tuple[str, str]] = Counter(
        (m.info.role, state_of(m)) for m in fleet.membership.members.values()
    )
    return {(role, state): found[role, state] for role in ROLES for state in STATES}


def _num_garbage(fleet: Fleet) -> int:
    return 0 if fleet.links.registry is None else fleet.links.registry.refused


def _describe(fleet: Fleet, member: Member) -> dict[str, Any]:
    info, load = member.info, member.load
    return {
        "id": info.instance_id,
        "role": info.role,
        "url": info.url,
        "endpoint": member.endpoint,
        "incarnation": info.incarnation,
        "state": state_of(member),
        "source": member.source,
        "model": info.model,
        "kv_connector": info.kv_connector,
        "kv_fingerprint": info.kv_fingerprint,
        "version": info.version,
        "requests": fleet.num_assigned(info.instance_id),
        "load": None if load is None else dict(msgspec.structs.asdict(load)),
    }
