"""What breaks when: a function of a seed. Knows kinds of faults and names of instances, no process.

The limits for gaps are those of docs/reliability.md: for a model of about 10M parameters on two
cores of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    gap_limit_s: float  # longest pause in a stream that the fault may cause
    takes_away: bool  # the instance is gone for a while: another of its role must be there
    is_fatal: bool = False  # the process ends
    may_move: bool = True  # may streams move to another instance?
    link: Literal["cut", "silence", "slow"] | None = None  # what happens to a link, not a process
    link_s: float = 0.0  # for so long
    victims: Literal["instance", "registry", "none"] = "instance"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill", 5.0, takes_away=True, is_fatal=True),
        Kind("terminate", 2.0, takes_away=True, is_fatal=True),
        Kind("stop", 8.0, takes_away=True),
        Kind("pause", 1.5, takes_away=False, may_move=False),
        Kind("cut", 5.0, takes_away=True, link="cut", link_s=6.0),
        Kind("silence", 8.0, takes_away=True, link="silence", link_s=6.0),
        Kind("slow", 1.5, takes_away=False, may_move=False, link="slow", link_s=6.0),
        Kind("registry", 1.5, False, may_move=False, link="cut", link_s=60.0, victims="registry"),
        Kind("hang-up", 1.5, takes_away=False, may_move=False, victims="none"),
        Kind("nothing", 1.5, takes_away=False, may_move=False, victims="none"),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    victim: str  # "" where no instance is touched
    seed: int  # for whatever else is left to chance


def schedule(seed: int, kinds: Sequence[str], instances: Sequence[str]) -> Iterator[Fault]:
    """Endless. `instances`: names, `role-number`. First every kind once, then every kind on every
    instance, then at random; no kind that takes the only instance of its role away."""
    rng = random.Random(seed)
    possible = list(_possible(kinds, instances))
    if not possible:
        return
    rng.shuffle(possible)
    firsts = list({kind.name: (kind, victim) for kind, victim in possible}.values())
    for kind, victim in [*firsts, *(each for each in possible if each not in firsts)]:
        yield Fault(kind, victim, rng.getrandbits(32))
    while True:
        kind, victim = rng.choice(possible)
        yield Fault(kind, victim, rng.getrandbits(32))


def _possible(kinds: Sequence[str], instances: Sequence[str]) -> Iterator[tuple[Kind, str]]:
    roles = [name.rpartition("-")[0] for name in instances]
    for kind in (KINDS[name] for name in kinds):
        if kind.victims != "instance":
            yield kind, "" if kind.victims == "none" else kind.victims
            continue
        for name, role in zip(instances, roles, strict=True):
            if not kind.takes_away or roles.count(role) > 1:
                yield kind, name
