"""Is there room in the fleet for one more prompt? Pure functions over what policies see.

An instance is full for us if it has no seat, no KV blocks, or too many prompt tokens before ours.
But one that runs nothing of ours is never full: so every wait ends with a request of our own,
however many other proxies use the fleet.
"""

from __future__ import annotations

from common.admission.admission import Want, backlog_of, seats_of
from proxy.policy import InstanceView, Snapshot


def has_room(snapshot: Snapshot, want: Want, *, whole: bool = False) -> bool:
    """Also true where nobody could serve at all: then the choice of instances tells why.

    whole: nothing is handed over, prompts are computed where they are decoded
    """
    computing, decoding = _sides(snapshot, whole)
    if not computing:
        return True
    before = want.num_begun // len(computing) if computing == decoding else 0
    is_begun_soon = any(_computes_soon(instance, want, before) for instance in computing)
    return is_begun_soon and any(_has_seat(instance, want) for instance in decoding)


def backlog(snapshot: Snapshot, *, whole: bool = False) -> int:
    """Prompt tokens not computed yet at the instance that has the fewest."""
    computing, _ = _sides(snapshot, whole)
    return min((instance.queued_tokens for instance in computing), default=0)


def _sides(snapshot: Snapshot, whole: bool) -> tuple[list[InstanceView], list[InstanceView]]:
    """Who computes prompts and who decodes; the same ones where a side is missing."""
    serving = [i for i in snapshot.instances if i.model == snapshot.model]
    healthy = [i for i in serving if not i.is_suspect] or serving
    prefills = [i for i in healthy if i.role == "prefill"]
    decodes = [i for i in healthy if i.role != "prefill"]
    if whole and decodes:
        return decodes, decodes
    return prefills or decodes, decodes or prefills


def _computes_soon(instance: InstanceView, want: Want, before: int) -> bool:
    """`before`: prompt tokens there by our own count, where the view counts only a report's."""
    if not instance.num_ours:
        return True
    is_soon = max(before, instance.queued_tokens) < backlog_of(want)
    return is_soon and _has_blocks(instance, want)


def _has_seat(instance: InstanceView, want: Want) -> bool:
    if not instance.num_ours:
        return True
    has_seat = instance.num_requests < seats_of(instance.max_num_seqs, is_only=want.is_only)
    return has_seat and _has_blocks(instance, want)


def _has_blocks(instance: InstanceView, want: Want) -> bool:
    return instance.free_blocks >= -(-want.num_tokens // max(1, instance.block_size))
