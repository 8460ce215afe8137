"""Whom to choose among instances that all could do the work: one pure function per policy and role.

To add one, write a function `(candidates, facts) -> InstanceView` and name it in `POLICIES`. A
policy sees only what `InstanceView` and `RequestFacts` say; who may be chosen at all is decided
before, in `policy.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import sha256

from proxy.policy import InstanceView, Policy, RequestFacts

RECOMPUTE_WEIGHT = 3  # what a token costs that is computed again, in tokens of waiting
Rank = Callable[[InstanceView, RequestFacts], tuple[float, ...]]  # lower is better


# --- what makes an instance better than another ---------------------------------------------------


def queue_rank(instance: InstanceView, facts: RequestFacts) -> tuple[float, ...]:
    """For prefill: the shortest wait for the first token."""
    return instance.queued_tokens, instance.num_requests


def room_rank(instance: InstanceView, facts: RequestFacts) -> tuple[float, ...]:
    """For decode: first those with room, then the fewest neighbours, then the emptiest cache."""
    emptiness = instance.free_blocks / max(1, instance.total_blocks)
    return _is_full(instance, facts), instance.num_requests, -emptiness


def work_rank(instance: InstanceView, facts: RequestFacts) -> tuple[float, ...]:
    """For prefill: tokens to compute before this prompt, and those of the prompt itself thrice, for
    they keep waiting this request, whoever comes after it, and whoever will miss the blocks that
    they push out of the cache.

    So an instance that has the prefix is left when its queue is longer by more than that.
    """
    work = instance.queued_tokens + RECOMPUTE_WEIGHT * uncached_tokens(instance, facts)
    return work, instance.num_requests


def reuse_rank(instance: InstanceView, facts: RequestFacts) -> tuple[float, ...]:
    """For decode: as `room_rank`, and among equals whoever needs to fetch the least."""
    is_full, num_requests, emptiness = room_rank(instance, facts)
    if not facts.prefer_whole:
        return is_full, num_requests, uncached_tokens(instance, facts), emptiness
    # It will compute the prompt, too, and decode beside all that it holds already.
    in_use = (instance.total_blocks - instance.free_blocks) * instance.block_size
    return is_full, in_use + work_rank(instance, facts)[0], num_requests, emptiness


def uncached_tokens(instance: InstanceView, facts: RequestFacts) -> int:
    """What is left to compute there. The last token always is."""
    return max(1, facts.num_tokens - facts.cached_tokens.get(instance.instance_id, 0))


# --- policies ------------------------------------------------------------------------------------


def round_robin(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
    return candidates[facts.turn % len(candidates)]


def any_of(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
    return _draw(candidates, facts, 1)[0]


def best_by(rank: Rank) -> Policy:
    """The best of all. Equals take turns."""

    def best(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
        shift = facts.turn % len(candidates)
        turned = [*candidates[shift:], *candidates[:shift]]
        return min(turned, key=lambda instance: rank(instance, facts))

    return best


def better_of_two(rank: Rank) -> Policy:
    """The better of two drawn ones: nearly as even as the best of all, and many proxies with the
    same, half a second old picture do not all run to one instance."""

    def better(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
        drawn = _draw(candidates, facts, 2)
        return min(drawn, key=lambda instance: rank(instance, facts))

    return better


def faithful(otherwise: Rank) -> Policy:
    """One session, one instance, as long as it is there. When instances come and go, only the
    sessions of these move (rendezvous hashing: Thaler and Ravishankar, 1998)."""

    def keep(candidates: Sequence[InstanceView], facts: RequestFacts) -> InstanceView:
        if not facts.session_id:
            return best_by(otherwise)(candidates, facts)
        session = facts.session_id.encode("utf-8", "surrogatepass")

        def weight(instance: InstanceView) -> bytes:
            return sha256(sha256(session).digest() + instance.instance_id.encode()).digest()

        return max(candidates, key=weight)

    return keep


# name on the command line: (for prefill, for decode)
POLICIES: dict[str, tuple[Policy, Policy]] = {
    "round_robin": (round_robin, round_robin),
    "random": (any_of, any_of),
    "power_of_two": (better_of_two(queue_rank), better_of_two(room_rank)),
    "least_loaded": (best_by(queue_rank), best_by(room_rank)),
    "session": (faithful(queue_rank), faithful(room_rank)),
    "prefix_aware": (best_by(work_rank), best_by(reuse_rank)),
}


def reads_prefixes(name: str) -> bool:
    """Does the policy need `RequestFacts.cached_tokens`?"""
    return name == "prefix_aware"


def _is_full(instance: InstanceView, facts: RequestFacts) -> bool:
    return instance.free_blocks < -(-facts.num_tokens // max(1, instance.block_size))


def _draw(
    candidates: Sequence[InstanceView], facts: RequestFacts, count: int
) -> list[InstanceView]:
    """At most `count` different ones: the same for the same facts, else as if by chance."""
    # The id keeps the draws of prefill and decode instances apart.
    key = f"{facts.seed}/{facts.turn}/{candidates[0].instance_id}"
    return random.Random(key).sample(candidates, min(count, len(candidates)))
