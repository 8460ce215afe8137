"""A KV load has failed: is there another prefill instance that has the prompt's KV, and would it be
sooner than computing where the answer is written? Decided from a frozen picture, as all routing.
"""

from __future__ import annotations

from proxy.disaggregation import hand_over_cost, local_cost
from proxy.estimates import Estimates
from proxy.policies import uncached_tokens
from proxy.policy import InstanceView, Pair, RequestFacts, Snapshot, can_pair

WORTH_A_TRY = 0.5  # of what D would compute: more than that another one computes as well


def other_source(
    snapshot: Snapshot, facts: RequestFacts, decode: str, estimates: Estimates, now: float
) -> Pair | None:
    """The cheapest other source for `decode`, among those not to be avoided; None: compute there.

    facts.avoid:  above all whoever's KV did not come
    """
    views = {view.instance_id: view for view in snapshot.instances}
    loader = views.get(decode)
    if loader is None:
        return None
    best: tuple[float, str] | None = None
    for view in snapshot.instances:
        is_able = view.role == "prefill" and view.model == snapshot.model and not view.is_suspect
        if not is_able or view.instance_id in facts.avoid or not can_pair(view, loader):
            continue
        cost_s = _worth(view, loader, facts, estimates, now)
        if cost_s is not None and (best is None or (cost_s, view.instance_id) < best):
            best = cost_s, view.instance_id
    return None if best is None else Pair(best[1], decode)


def _worth(
    source: InstanceView,
    loader: InstanceView,
    facts: RequestFacts,
    estimates: Estimates,
    now: float,
) -> float | None:
    """What it costs, in seconds or, as long as nothing is known of speeds, in tokens; None: more
    than computing on `loader`."""
    there, here = uncached_tokens(source, facts), uncached_tokens(loader, facts)
    if there > WORTH_A_TRY * here:
        return None
    apart = hand_over_cost(source, loader, facts, estimates, now)
    local = local_cost(loader, facts, estimates, now)
    if apart is None or local is None:
        return float(there)
    return apart.total_s if apart.total_s < local.total_s else None
