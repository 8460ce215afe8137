"""Hand over, or prefill where the answer is written? Decided per request from a frozen picture.

What is compared is the waiting that each way adds, in seconds, summed over everybody it keeps
waiting:

    hand over    queue of P + prefill on P of what P has not cached + the hand-over
    local        (queue of D + prefill on D of what D has not cached) for the request itself, and
                 that prefill once more for each request that runs on D: its tokens stand still

Whatever the sum says, running streams are not stalled beyond the budget for their token gaps: a
prompt that D would compute for longer goes to a prefill instance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from proxy.estimates import Estimates
from proxy.policies import uncached_tokens
from proxy.policy import InstanceView, Pair, RequestFacts, Route, Snapshot, Whole, can_pair

WORTH_A_STALL = 0.5  # an idle D takes a prompt beyond the budget if it halves the wait


@dataclass(frozen=True, slots=True)
class Disaggregation:
    """What the operator has chosen."""

    mode: Literal["auto", "always", "never"] = "always"
    itl_budget_s: float = 0.1  # that a local prefill may add to a gap of streams beside it

    @property
    def reads_prefixes(self) -> bool:
        """Is it to be known who has which prompts cached?"""
        return self.mode == "auto"

    def decide(
        self,
        route: Route,
        snapshot: Snapshot,
        facts: RequestFacts,
        estimates: Estimates,
        now: float,
    ) -> Route:
        """`route`: what the policies chose (with `never`: among whole runs only)."""
        if self.mode != "auto":
            return route
        return reconsider(route, snapshot, facts, estimates, self.itl_budget_s, now)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one way, in seconds."""

    own_s: float  # until the request's second token can come
    others_s: float = 0.0  # that requests on D stand still, summed

    @property
    def total_s(self) -> float:
        return self.own_s + self.others_s


def reconsider(
    route: Route,
    snapshot: Snapshot,
    facts: RequestFacts,
    estimates: Estimates,
    itl_budget_s: float,
    now: float,
) -> Route:
    """The pair that the policies chose, or one decode instance for the whole request."""
    if not isinstance(route, Pair):
        return route
    views = {view.instance_id: view for view in snapshot.instances}
    prefill, decode = views[route.prefill], views[route.decode]
    apart = hand_over_cost(prefill, decode, facts, estimates, now)
    if apart is None:  # nothing is known yet: learn
        return route
    best: tuple[Route, float] = route, apart.total_s
    for view in _able(snapshot, prefill, facts):
        here = local_cost(view, facts, estimates, now)
        if here is None or here.total_s >= best[1]:
            continue
        is_idle_and_much_sooner = (
            not view.num_requests and here.own_s <= WORTH_A_STALL * apart.own_s
        )
        if is_idle_and_much_sooner or _is_gentle(view, facts, estimates, itl_budget_s, now):
            best = Whole(view.instance_id), here.total_s
    return best[0]


def hand_over_cost(
    prefill: InstanceView,
    decode: InstanceView,
    facts: RequestFacts,
    estimates: Estimates,
    now: float,
) -> Cost | None:
    """None: no prefill or no hand-over has been observed."""
    speed = estimates.prefill(prefill.instance_id, now)
    way = estimates.hand_over(prefill.instance_id, decode.instance_id, now)
    if speed is None or way is None:
        return None
    queue_s = speed.seconds(prefill.queued_tokens) if prefill.queued_tokens else 0.0
    own_s = queue_s + speed.seconds(uncached_tokens(prefill, facts))
    return Cost(own_s + way.seconds(uncached_tokens(decode, facts)))


def local_cost(
    decode: InstanceView, facts: RequestFacts, estimates: Estimates, now: float
) -> Cost | None:
    speed = estimates.prefill(decode.instance_id, now)
    if speed is None:
        return None
    queue_s = speed.seconds(decode.queued_tokens) if decode.queued_tokens else 0.0
    own_s = speed.seconds(uncached_tokens(decode, facts))
    return Cost(queue_s + own_s, own_s * decode.num_requests)


def token_limit(
    decode: InstanceView, estimates: Estimates, itl_budget_s: float, now: float
) -> float:
    """How many tokens D may compute between two tokens of its streams."""
    speed = estimates.prefill(decode.instance_id, now)
    return 0.0 if speed is None else speed.tokens_within(itl_budget_s)


def _is_gentle(
    decode: InstanceView,
    facts: RequestFacts,
    estimates: Estimates,
    itl_budget_s: float,
    now: float,
) -> bool:
    """What waits there already counts: a step takes tokens of several prompts."""
    tokens = uncached_tokens(decode, facts) + decode.queued_tokens
    return tokens <= token_limit(decode, estimates, itl_budget_s, now)


def _able(snapshot: Snapshot, prefill: InstanceView, facts: RequestFacts) -> Iterable[InstanceView]:
    """Decode instances that could run the request whole, with room for it."""
    for view in snapshot.instances:
        has_room = view.free_blocks * view.block_size >= facts.num_tokens
        is_sound = not view.is_suspect and view.instance_id not in facts.avoid
        if view.role != "prefill" and is_sound and has_room and can_pair(prefill, view):
            yield view
