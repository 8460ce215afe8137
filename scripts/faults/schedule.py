"""What breaks when: a function of a seed. Knows kinds of faults and names of instances, no process.

The limits for gaps are those of docs/reliability.md: for a model of about 10M parameters on two
cores of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    gap_limit_s: float  # longest pause in a stream that the fault may cause
    takes_away: bool  # the instance is gone for a while: another of its role must be there
    is_fatal: bool = False  # the process ends
    may_move: bool = True  # may streams move to another instance?


KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill", 5.0, takes_away=True, is_fatal=True),
        Kind("terminate", 2.0, takes_away=True, is_fatal=True),
        Kind("stop", 8.0, takes_away=True),
        Kind("pause", 1.5, takes_away=False, may_move=False),
        Kind("hang-up", 1.5, takes_away=False, may_move=False),
        Kind("nothing", 1.5, takes_away=False, may_move=False),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    victim: str  # "" where no instance is touched
    seed: int  # for whatever else is left to chance


def schedule(seed: int, kinds: Sequence[str], instances: Sequence[str]) -> Iterator[Fault]:
    """Endless. `instances`: names, `role-number`. First everything once, then at random; no kind
    that takes the only instance of its role away."""
    rng = random.Random(seed)
    possible = list(_possible(kinds, instances))
    if not possible:
        return
    rng.shuffle(possible)
    for kind, victim in possible:
        yield Fault(kind, victim, rng.getrandbits(32))
    while True:
        kind, victim = rng.choice(possible)
        yield Fault(kind, victim, rng.getrandbits(32))


def _possible(kinds: Sequence[str], instances: Sequence[str]) -> Iterator[tuple[Kind, str]]:
    roles = [name.rpartition("-")[0] for name in instances]
    for kind in (KINDS[name] for name in kinds):
        if kind.name in ("hang-up", "nothing"):
            yield kind, ""
            continue
        for name, role in zip(instances, roles, strict=True):
            if not kind.takes_away or roles.count(role) > 1:
                yield kind, name
