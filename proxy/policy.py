"""Which instances serve a request: pure functions over a frozen picture of the fleet.

Here is decided who could do the work at all; among those, a policy (`policies.py`) chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from common.fingerprint import incompatible_fields
from common.wire import Role


class InstanceView(msgspec.Struct, frozen=True):
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
    num_ours: int = 0  # of those requests, from this proxy
    max_num_seqs: int = 0  # that it runs at once; 0: it does not say


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a choice may depend on."""

    num_tokens: int  # whose KV the decode instance must hold to begin: prompt and tokens so far
    turn: int = 0  # counts the requests of this proxy
    avoid: frozenset[str] = frozenset()  # instances that have failed this request
    prefer_whole: bool = False  # a hand-over has failed, or there is nobody for it: do without
    seed: int = 0  # of this proxy: what its draws depend on, beside the turn
    session_id: str = ""  # the client's word for what belongs together
    cached_tokens: Mapping[str, int] = field(default_factory=dict)  # of the prompt, by instance id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All instances that have a working link and are not draining, in a stable order."""

    model: str  # the served one; instances of others are never chosen
    instances: tuple[InstanceView, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    prefill: str
    decode: str
    has_other_source: bool = False  # should the load fail: another prefill instance has the KV


@dataclass(frozen=True, slots=True)
class Whole:
    """One instance does prefill and decode."""

    instance: str


@dataclass(frozen=True, slots=True)
class NoInstance:
    reason: str


Route = Pair | Whole | NoInstance
Policy = Callable[[Sequence[InstanceView], RequestFacts], InstanceView]


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
            return Whole(decode_policy(decodes, replace(facts, prefer_whole=True)).instance_id)
        if prefills:
            return Whole(prefill_policy(prefills, facts).instance_id)
        return NoInstance("no instance is ready")
    partners = [p for p in prefills if any(can_pair(p, d) for d in decodes)]
    if not partners:
        whole = [d for d in decodes if d.role == "both"]
        if whole:
            return Whole(decode_policy(whole, replace(facts, prefer_whole=True)).instance_id)
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
        name for name, _, _ in incompatible_fields(one.kv_fingerprint, other.kv_fingerprint)
    ]
