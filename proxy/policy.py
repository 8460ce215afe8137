"""Which instances serve a request: pure functions over a frozen picture of the fleet.

A policy is one function `(candidates, facts) -> InstanceView` over candidates that all could do the
work; it chooses by load, turn or whatever the view offers. To add one, write it and name it in
`POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.fingerprint import differing_fields
from common.wire import Role


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance as a policy sees it: its last Load, corrected by what we sent it since."""

    instance_id: str
    role: Role
    model: str
    kv_fingerprint: str
    kv_connector: str
    max_model_len: int
    block_size: int
    is_suspect: bool  # silent for a while
    queued_tokens: int  # prompt tokens not yet computed
    num_requests: int  # running and waiting
    free_blocks: int
    total_blocks: int


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a choice may depend on."""

    num_tokens: int  # whose KV the decode instance must hold to begin: prompt and tokens so far
    turn: int = 0  # counts the requests of this proxy
    avoid: frozenset[str] = frozenset()  # instances that have failed this request
    prefer_whole: bool = False  # a hand-over has failed: do without


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All instances that have a working link and are not draining, in a stable order."""

    model: str  # the served one; instances of others are never chosen
    instances: tuple[InstanceView, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    prefill: str
    decode: str


@dataclass(frozen=True, slots=True)
class Whole:
    """One instance does prefill and decode."""

    instance: str


@dataclass(frozen=True, slots=True)
class NoInstance:
    reason: str


Route = Pair | Whole | NoInstance
Policy = Callable[[Sequence[InstanceView], RequestFacts], InstanceView]


# --- policies ------------------------------------------------------------------------------------


def round_robin(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
    return candidates[facts.turn % len(candidates)]


def least_queued_tokens(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
    """For prefill: the shortest wait for the first token. Equals take turns."""
    return min(_rotated(candidates, facts), key=lambda i: (i.queued_tokens, i.num_requests))


def least_requests(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
    """For decode: first those with room, then the fewest neighbours, then the emptiest cache."""

    def rank(instance: InstanceView) -> tuple[bool, int, float]:
        needed = -(-facts.num_tokens // max(1, instance.block_size))
        is_full = instance.free_blocks < needed
        return is_full, instance.num_requests, -instance.free_blocks / max(1, instance.total_blocks)

    return min(_rotated(candidates, facts), key=rank)


def _rotated(candidates: Sequence[InstanceView], facts: RequestFacts) -> list[InstanceView]:
    shift = facts.turn % len(candidates)
    return [*candidates[shift:], *candidates[:shift]]


# name on the command line: (for prefill, for decode)
POLICIES: dict[str, tuple[Policy, Policy]] = {
    "round_robin": (round_robin, round_robin),
    "least_loaded": (least_queued_tokens, least_requests),
}


# --- the choice ----------------------------------------------------------------------------------


def choose_pair(
    snapshot: Snapshot, facts: RequestFacts, prefill_policy: Policy, decode_policy: Policy
) -> Route:
    """Prefer healthy instances that have not failed this request, but take any before refusing."""
    route: Route = NoInstance("no instance is ready")
    for allow_suspect, allow_avoided in (
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ):
        instances = [
            instance
            for instance in snapshot.instances
            if (allow_suspect or not instance.is_suspect)
            and (allow_avoided or instance.instance_id not in facts.avoid)
        ]
        route = _choose(snapshot.model, instances, facts, prefill_policy, decode_policy)
        if not isinstance(route, NoInstance):
            break
    return route


def _choose(
    model: str,
    instances: list[InstanceView],
    facts: RequestFacts,
    prefill_policy: Policy,
    decode_policy: Policy,
) -> Route:
    serving = [i for i in instances if i.model == model]
    prefills = [i for i in serving if i.role == "prefill"]
    decodes = [i for i in serving if i.role != "prefill"]
    if facts.prefer_whole or not (prefills and decodes):
        stranger = _missing_partner(prefills, decodes, [i for i in instances if i not in serving])
        if stranger is not None and not facts.prefer_whole:
            return NoInstance(mismatch(serving[0], stranger))
        if decodes:
            return Whole(decode_policy(decodes, facts).instance_id)
        if prefills:
            return Whole(prefill_policy(prefills, facts).instance_id)
        return NoInstance("no instance is ready")
    partners = [p for p in prefills if any(can_pair(p, d) for d in decodes)]
    if not partners:
        return NoInstance(mismatch(prefills[0], decodes[0]))
    prefill = prefill_policy(partners, facts)
    decode = decode_policy([d for d in decodes if can_pair(prefill, d)], facts)
    return Pair(prefill.instance_id, decode.instance_id)


def _missing_partner(
    prefills: list[InstanceView], decodes: list[InstanceView], strangers: list[InstanceView]
) -> InstanceView | None:
    """An instance that would complete the pair, were its model the right one."""
    if prefills and not decodes:
        return next((s for s in strangers if s.role != "prefill"), None)
    if decodes and not prefills and all(d.role == "decode" for d in decodes):
        return next((s for s in strangers if s.role == "prefill"), None)
    return None


def can_pair(prefill: InstanceView, decode: InstanceView) -> bool:
    """Can KV blocks go from one to the other?"""
    return not _differences(prefill, decode)


def mismatch(one: InstanceView, other: InstanceView) -> str:
    fields = ", ".join(_differences(one, other))
    return f"no matching prefill and decode instance: {fields} differs between them"


def _differences(one: InstanceView, other: InstanceView) -> list[str]:
    names = [
        name for name in ("model", "kv_connector") if getattr(one, name) != getattr(other, name)
    ]
    return names + [
        name for name, _, _ in differing_fields(one.kv_fingerprint, other.kv_fingerprint)
    ]
