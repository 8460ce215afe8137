"""What the workers of one port know, as one answer of `/status`. Pure: plain values in and out.

Each worker counts its own requests and sees the same instances. So requests, counts and what was
measured are added up; of instances the loads are what they are, and `requests` is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common.api.observe import together
from common.recent import added, percentiles_of
from proxy.sightings import MAX_FAILURES

Part = dict[str, Any]  # `status.own_part` of one worker

_ADDED = ("requests_in_flight", "requests_queued", "requests_waiting")
_COUNTED = ("cached_tokens_routed", "resets")  # of `prefixes`


def whole(parts: Sequence[Part], num_workers: int = 0) -> dict[str, Any]:
    """The first of `parts` is of the worker that was asked: what all see alike is told by it.
    `num_workers`: that there should be; 0: this is no worker."""
    first = {name: value for name, value in parts[0].items() if name != "worker"}
    return {
        **first,
        "is_ready": all(part["is_ready"] for part in parts),
        "is_draining": any(part["is_draining"] for part in parts),
        **{name: sum(part[name] for part in parts) for name in _ADDED},
        "counts": add_counts([part["counts"] for part in parts]),
        "instances": whole_instances([part["instances"] for part in parts]),
        "prefixes": _prefixes([part["prefixes"] for part in parts]),
        "controller": next((p["controller"] for p in parts if p["controller"]), None),
        "watched": _unique((each for part in parts for each in part["watched"]), "address"),
        "refused": {name: why for part in reversed(parts) for name, why in part["refused"].items()},
        "recent": together([part["recent"] for part in parts]),
        "links": _links([link for part in parts for link in part["links"]]),
        "failures": sorted(
            (each for part in parts for each in part["failures"]), key=lambda f: -float(f["at"])
        )[:MAX_FAILURES],
        "uptime_s": max(part["uptime_s"] for part in parts),
        "workers": {"count": num_workers, "answered": sorted(map(_worker, parts), key=_number)}
        if num_workers
        else None,
    }


def whole_instances(parts: Sequence[Sequence[Part]]) -> list[Part]:
    """By id; everybody's requests there."""
    found: dict[str, Part] = {}
    for instances in parts:
        for each in instances:
            known = found.setdefault(each["id"], {**each, "requests": 0})
            known["requests"] += each["requests"]
    return [found[name] for name in sorted(found)]


def _worker(part: Part) -> Part:
    return {**part["worker"], **{name: part[name] for name in (*_ADDED, "uptime_s")}}


def _number(worker: Part) -> int:
    return int(worker["number"])


def add_counts(many: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers by name, and numbers by name within these."""
    total: dict[str, Any] = {}
    for counts in many:
        for name, value in counts.items():
            if isinstance(value, Mapping):
                total[name] = add_counts([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total


def _prefixes(many: Sequence[dict[str, int] | None]) -> dict[str, int] | None:
    """Everybody follows the same caches: the fullest picture of them, and all requests' hits."""
    found = [each for each in many if each is not None]
    if not found:
        return None
    return {
        name: (sum if name in _COUNTED else max)(each[name] for each in found) for name in found[0]
    }


def _links(many: Sequence[Part]) -> list[Part]:
    pairs: dict[tuple[str, str], list[Part]] = {}
    for link in many:
        pairs.setdefault((link["prefill"], link["decode"]), []).append(link)
    return [
        {
            "prefill": prefill,
            "decode": decode,
            "handovers": (seen := percentiles_of(added(link["transfer"] for link in links))).count,
            "bytes_per_s": round(sum(link["bytes_per_s"] for link in links), 1),
            **{name: value for name, value in asdict(seen).items() if name != "count"},
        }
        for (prefill, decode), links in sorted(pairs.items())
    ]


def _unique(found: Iterable[Part], key: str) -> list[Part]:
    return list({each[key]: each for each in found}.values())
