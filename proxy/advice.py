"""How many prefill and how many decode instances a load wants: a pure function over a window of
fleet samples. Flips nothing and reads no clock.

A role's pressure is 1 when it is just loaded as it should be:

    prefill   the share of time that the instances have had prompts to compute; if that is nearly
              all the time, seconds of prompts queued per instance / target, or TTFT / its target
    decode    share of KV blocks in use / target, or ITL / its target; above 1 while requests wait

One instance changes sides when one side has been above 1 all the time and the other would stay
below 0.6 without it. Under a steady load that is never undone: the side that gave stays below 0.6,
and only a side above 1 takes. After every change of the fleet the window begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["prefill", "decode"]

HIGH = 1.0  # a side above this needs more
LOW = 0.6  # a side that would stay below this can give
SHORT = "both sides need more instances"
BUSY = 0.9  # share of the time with something to compute, from which on a queue is a queue


@dataclass(frozen=True, slots=True)
class Targets:
    queue_s: float = 1.0  # of prompts before a prefill instance
    kv_usage: float = 0.85
    ttft_s: float | None = None
    itl_s: float | None = None
    window_s: float = 20.0
    cooldown_s: float = 60.0  # between two flips


@dataclass(frozen=True, slots=True)
class InstanceSample:
    instance_id: str
    role: str
    is_usable: bool  # ready, and not draining
    queued_tokens: int  # prompt tokens that are to be computed there
    num_requests: int  # running and waiting
    num_waiting: int
    kv_usage: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class FleetSample:
    """The fleet at one moment. `computed_tokens` only grows; TTFT and ITL are of the last while."""

    at: float
    instances: tuple[InstanceSample, ...]
    computed_tokens: int = 0  # of prompts
    ttft_s: float | None = None
    itl_s: float | None = None

    def of(self, side: str) -> list[InstanceSample]:
        return [i for i in self.instances if i.role == side and i.is_usable]


@dataclass(frozen=True, slots=True)
class Advice:
    """`flip` names who should change to which side; None: nobody."""

    reason: str
    prefill: int = 0  # instances that the load wants
    decode: int = 0
    flip: tuple[str, Side] | None = None
    pressure: tuple[float, float] = (0.0, 0.0)  # of prefill and of decode, now


def advise(
    window: Sequence[FleetSample], targets: Targets, now: float, changed_at: float | None = None
) -> Advice:
    """`window`: oldest first; `changed_at`: when this controller flipped last."""
    steady = _steady(window, targets, now)
    if not steady:
        return Advice("nothing has been seen yet")
    last = steady[-1]
    counts = len(last.of("prefill")), len(last.of("decode"))
    if last.at - steady[0].at < targets.window_s * 0.8:
        return Advice("the fleet has changed: watching", *counts)
    first, second = steady[: len(steady) // 2], steady[len(steady) // 2 :]
    rate = _tokens_per_busy_second(steady)
    early, late, whole = (_pressures(part, rate, targets) for part in (first, second, steady))
    is_high = [min(halves) > HIGH for halves in zip(early, late, strict=True)]
    if changed_at is not None and now - changed_at < targets.cooldown_s:
        return Advice("a role has changed lately: waiting", *counts, pressure=whole)
    return _weigh(last, is_high, whole, counts)


def _weigh(
    last: FleetSample,
    is_high: list[bool],
    pressure: tuple[float, float],
    counts: tuple[int, int],
) -> Advice:
    """Who needs, and who can give."""
    sides: tuple[Side, Side] = ("prefill", "decode")
    if not any(is_high):
        return Advice("as many as the load wants", *counts, pressure=pressure)
    if all(is_high):
        return Advice(SHORT, *counts, pressure=pressure)
    needy = is_high.index(True)
    giver = 1 - needy
    what = f"{sides[needy]} is at {pressure[needy]:.1f} times its target"
    if counts[giver] < 2 or not counts[needy]:
        return Advice(f"{what}; {sides[giver]} has none to give", *counts, pressure=pressure)
    if pressure[giver] * counts[giver] / (counts[giver] - 1) >= LOW:
        return Advice(f"{what}; {sides[giver]} needs what it has", *counts, pressure=pressure)
    chosen = min(last.of(sides[giver]), key=_work)
    wanted = [counts[side] + (1 if side == needy else -1) for side in (0, 1)]
    return Advice(
        f"{what}, {sides[giver]} at {pressure[giver]:.1f}",
        wanted[0],
        wanted[1],
        (chosen.instance_id, sides[needy]),
        pressure,
    )


def _steady(window: Sequence[FleetSample], targets: Targets, now: float) -> list[FleetSample]:
    """The youngest part in which the fleet was as it is, at most the window's length."""
    found: list[FleetSample] = []
    for sample in reversed(window):
        if now - sample.at > targets.window_s or (found and _shape(sample) != _shape(found[0])):
            break
        found.append(sample)
    return found[::-1]


def _shape(sample: FleetSample) -> set[tuple[str, str, bool]]:
    return {(i.instance_id, i.role, i.is_usable) for i in sample.instances}


def _tokens_per_busy_second(samples: Sequence[FleetSample]) -> float:
    """What one prefill instance computes while it has something to compute; 0: not known."""
    busy_s = 0.0
    for before, after in zip(samples, samples[1:], strict=False):
        num_busy = sum(i.queued_tokens > 0 for i in before.of("prefill"))
        busy_s += num_busy * (after.at - before.at)
    computed = samples[-1].computed_tokens - samples[0].computed_tokens
    return computed / busy_s if busy_s and computed > 0 else 0.0


def _pressures(
    samples: Sequence[FleetSample], rate: float, targets: Targets
) -> tuple[float, float]:
    return _prefill_pressure(samples, rate, targets), _mean(
        [_decode_pressure(sample, targets) for sample in samples]
    )


def _prefill_pressure(samples: Sequence[FleetSample], rate: float, targets: Targets) -> float:
    """Instances that are idle now and then are not short of hands, however long a prompt took."""
    queues = [[i.queued_tokens for i in sample.of("prefill")] for sample in samples]
    busy = _mean([_mean([float(tokens > 0) for tokens in queue]) for queue in queues])
    if busy < BUSY:
        return busy
    queued = _mean([_mean(queue) for queue in queues])
    late = _mean([_ratio(sample.ttft_s, targets.ttft_s) for sample in samples])
    return max(busy, queued / rate / targets.queue_s if rate else 0.0, late)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _decode_pressure(sample: FleetSample, targets: Targets) -> float:
    instances = sample.of("decode")
    if not instances:
        return 0.0
    usage = sum(i.kv_usage for i in instances) / len(instances) / targets.kv_usage
    waiting = sum(i.num_waiting for i in instances)
    queue = 1.0 + waiting / max(1, sum(i.num_requests for i in instances)) if waiting else 0.0
    running = any(i.num_requests for i in instances)
    return max(usage, queue, _ratio(sample.itl_s, targets.itl_s) if running else 0.0)


def _ratio(measured: float | None, target: float | None) -> float:
    return measured / target if measured is not None and target else 0.0


def _work(instance: InstanceSample) -> tuple[int, float, str]:
    """What a flip would have to finish or move."""
    return instance.num_requests, instance.kv_usage, instance.instance_id
