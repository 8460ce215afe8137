"""Who is alive: plain state with time as a parameter. Opens no socket and reads no clock.

    (registry, static list, admin) ──found──▶ CONNECTING ──Welcome──▶ READY ◀──heard── SUSPECT
                                                  ▲  ▲                  │  ──silence──▶ │
                                 found, poll      │  └── broken link ───┴───────────────┤
                                                DEAD ◀──── silence, no Welcome ─────────┘

What discovery says is a hint: it can make an instance known or bring a dead one back, no more. The
truth comes over the request link, from whoever answers there. Draining is no state but a mark:
nothing new is sent to such an instance, and what it runs goes on.

Each method returns the effects that its caller must bring about (`Connect`, `Disconnect`, `Lost`,
`Poll`), in order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from msgspec.structs import replace

from common.wire import WIRE_VERSION, AdapterInfo, AdaptersChanged, InstanceInfo, Load
from proxy.wishes import Wishes

log = logging.getLogger(__name__)

MAX_INSTANCES = 256
MAX_ADAPTERS = 4096
MAX_TEXT = 1024  # characters of any text in an InstanceInfo
NEW_ROLE = "it has taken another role"  # the one reason of `Lost` that is no failure


class State(str, Enum):
    CONNECTING = "connecting"  # known; its link has not said Welcome
    READY = "ready"
    SUSPECT = "suspect"  # silent for a while: used only if nobody else can
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of silence after which we think less of somebody."""

    suspect_s: float = 1.5
    dead_s: float = 3.0
    forget_s: float = 60.0
    poll_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a fresh link to `endpoint`; anything older for this instance has been disconnected."""

    instance_id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    instance_id: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Whatever this incarnation was running will not be answered over the link it was sent on."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask `http://{address}/instance` who is there, and report with `polled`."""

    address: str


Effect = Connect | Disconnect | Lost | Poll


@dataclass(slots=True)
class Member:
    """One known instance. Only `Membership` writes here."""

    info: InstanceInfo
    source: str  # "registry", "static" or "admin"
    endpoint: str  # where its link goes
    heard_at: float  # last sign of life; while connecting: when we began
    state: State = State.CONNECTING
    is_linked: bool = True
    load: Load | None = None
    drain_asked: bool = False  # by an administrator
    is_leaving: bool = False  # it said so itself
    peer: bytes = b""  # who registered it

    @property
    def is_draining(self) -> bool:
        said_so = self.load is not None and self.load.is_draining
        return said_so or self.drain_asked or self.is_leaving

    @property
    def is_connected(self) -> bool:
        return self.state in (State.READY, State.SUSPECT)


@dataclass(slots=True)
class Target:
    """An address from the static list or the admin API."""

    address: str  # host:port of the instance's HTTP side
    source: str
    instance_id: str = ""  # who answered there last
    next_poll: float = 0.0
    complaint: str = ""  # why the last poll gave no instance


@dataclass(slots=True)
class Membership:
    timing: Timing = Timing()
    members: dict[str, Member] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    num_refused: int = 0
    refusals: dict[str, str] = field(default_factory=dict)  # instance id: the last reason
    _removed: dict[str, str] = field(default_factory=dict)  # instance id: incarnation
    _drained: dict[str, str] = field(default_factory=dict)  # instance id: incarnation, told before
    _ticked_at: float | None = None

    # --- discovery ---------------------------------------------------------------------------

    def found(
        self, info: InstanceInfo, source: str, now: float, peer: bytes = b"", host: str = ""
    ) -> list[Effect]:
        """Somebody says that this instance exists. `host` replaces a wildcard in its endpoint."""
        if problem := problem_of(info):
            return self._refuse(info.instance_id[:64], problem)
        if source == "registry" and self._removed.get(info.instance_id) == info.incarnation:
            return []
        endpoint = reachable(info.endpoint, host)
        member = self.members.get(info.instance_id)
        if member is None:
            return self._join(info, source, endpoint, now, peer)
        if member.is_connected:
            if member.endpoint != endpoint:
                return self._refuse(info.instance_id, "its id is taken by a live instance")
            return []  # known, or restarted at the same place: then its link will tell
        is_same = (member.info.incarnation, member.endpoint) == (info.incarnation, endpoint)
        if is_same and member.state is State.CONNECTING:
            return []
        effects: list[Effect] = [Disconnect(info.instance_id)] if member.is_linked else []
        drain_asked = is_same and member.drain_asked
        self.members[info.instance_id] = Member(
            info, source, endpoint, now, drain_asked=drain_asked, peer=peer
        )
        return [*effects, Connect(info.instance_id, endpoint)]

    def deregister(self, instance_id: str, incarnation: str, peer: bytes) -> list[Effect]:
        """A registered instance leaves: it gets nothing new, and its death will be no surprise."""
        member = self.members.get(instance_id)
        if member is None:
            return []
        if (member.info.incarnation, member.peer) != (incarnation, peer):
            return self._refuse(instance_id, "deregistered by somebody else")
        member.is_leaving = True
        return []

    def watch(self, address: str, source: str) -> None:
        """Poll `address` from now on. Idempotent; raises `ValueError` if there are too many."""
        if address not in self.targets and len(self.targets) >= MAX_INSTANCES:
            raise ValueError(f"at most {MAX_INSTANCES} addresses can be watched")
        self.targets.setdefault(address, Target(address, source))

    def polled(self, address: str, answer: InstanceInfo | str, now: float) -> list[Effect]:
        """What `address` answered: an instance, or why there was none."""
        target = self.targets.get(address)
        if target is None:
            return []
        if isinstance(answer, str):
            target.complaint = answer
            return []
        target.complaint = problem_of(answer)
        target.instance_id = answer.instance_id
        host = urlsplit(f"//{address}").hostname or ""
        return self.found(answer, target.source, now, host=host)

    # --- the request link --------------------------------------------------------------------

    def welcome(self, instance_id: str, info: InstanceInfo, now: float) -> list[Effect]:
        """Whoever answers on the link of `instance_id` says who it is."""
        member = self.members.get(instance_id)
        if member is None:
            return []
        if info.instance_id != instance_id:
            lost = self._drop(member, "another instance has taken its address")
            return lost + self.found(info, member.source, now, member.peer)
        if problem := problem_of(info):
            return self._die(member, problem)
        effects: list[Effect] = []
        if info.incarnation != member.info.incarnation:
            is_new_role = info.role != member.info.role
            effects.append(Lost(instance_id, NEW_ROLE if is_new_role else "it was restarted"))
            member.load, member.is_leaving = None, False
        elif member.is_connected:  # greeted twice: it had given us up, and our requests with us
            effects.append(Lost(instance_id, "it had lost contact with this proxy"))
        member.info = info
        member.state, member.heard_at = State.READY, now
        self.refusals.pop(instance_id, None)
        return effects

    def adapters_changed(self, instance_id: str, message: AdaptersChanged) -> None:
        member = self.members.get(instance_id)
        if member is None or member.info.incarnation != message.incarnation:
            return
        info = replace(member.info, adapters=message.adapters)
        if problem := problem_of(info):
            self._refuse(instance_id, problem)
        else:
            member.info = info

    def loaded(self, instance_id: str, load: Load, now: float) -> list[Effect]:
        """A heartbeat. One from another incarnation means that the link crosses a restart."""
        member = self.members.get(instance_id)
        if member is None or not member.is_linked:
            return []
        if load.incarnation != member.info.incarnation:
            return self.disconnected(instance_id, now)
        member.load = load
        self.heard(instance_id, now)
        return []

    def heard(self, instance_id: str, now: float) -> None:
        """Any message of a welcomed instance is a sign of life."""
        member = self.members.get(instance_id)
        if member is not None and member.is_connected:
            member.state, member.heard_at = State.READY, now

    def disconnected(self, instance_id: str, now: float) -> list[Effect]:
        """The connection broke, and messages may be gone with it: try once more from the start."""
        member = self.members.get(instance_id)
        if member is None or not member.is_linked:
            return []
        if member.is_connected:
            member.heard_at = now
            log.warning("instance_id=%s: its connection broke", instance_id)
        effects: list[Effect] = [Disconnect(instance_id)]
        if member.is_connected:
            effects.append(Lost(instance_id, "its connection broke"))
        member.state, member.is_linked = State.CONNECTING, False
        return effects

    # --- time and people ---------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Call a few times a second. A late call is our own hang and not held against anybody."""
        late = max(0.0, now - (self._ticked_at or now) - 1.0)
        self._ticked_at = now
        effects: list[Effect] = []
        for member in list(self.members.values()):
            member.heard_at += late
            effects += self._age(member, now)
        for target in self.targets.values():
            known = self.members.get(target.instance_id)
            if now >= target.next_poll and (known is None or known.state is State.DEAD):
                target.next_poll = now + self.timing.poll_s
                effects.append(Poll(target.address))
        return effects

    def drain(self, instance_id: str, wanted: bool = True) -> None:
        """Send it nothing new, or use it again. Raises `KeyError`."""
        self.members[instance_id].drain_asked = wanted

    def wishes(self) -> Wishes:
        """All that an administrator has changed, as it stands."""
        members = self.members.items()
        return Wishes(
            watched={address: target.source for address, target in self.targets.items()},
            drained={name: m.info.incarnation for name, m in members if m.drain_asked},
            removed=dict(self._removed),
        )

    def take_over(self, wishes: Wishes) -> None:
        """Before anything is known: they hold for whom they named, when it is found."""
        for address, source in wishes.watched.items():
            self.watch(address, source)
        self._drained = dict(wishes.drained)
        self._removed = dict(wishes.removed)

    def remove(self, instance_id: str) -> list[Effect]:
        """Forget an instance until it restarts or is added again. Raises `KeyError`."""
        member = self.members[instance_id]
        for address in [a for a, t in self.targets.items() if t.instance_id == instance_id]:
            del self.targets[address]
        if len(self._removed) >= MAX_INSTANCES:
            del self._removed[next(iter(self._removed))]
        self._removed[instance_id] = member.info.incarnation
        return self._drop(member, "it was removed")

    # --- inside ------------------------------------------------------------------------------

    def _age(self, member: Member, now: float) -> list[Effect]:
        silence_s = now - member.heard_at
        if member.state is State.DEAD:
            if silence_s > self.timing.forget_s or member.is_leaving:
                del self.members[member.info.instance_id]
            return []
        if silence_s > self.timing.dead_s:
            return self._die(member, f"silent for {silence_s:.1f} s")
        if member.state is State.READY and silence_s > self.timing.suspect_s:
            member.state = State.SUSPECT
        if member.state is State.CONNECTING and not member.is_linked:
            member.is_linked = True
            return [Connect(member.info.instance_id, member.endpoint)]
        return []

    def _die(self, member: Member, reason: str) -> list[Effect]:
        effects: list[Effect] = []
        if member.is_linked:
            effects.append(Disconnect(member.info.instance_id))
        if member.is_connected:  # otherwise it has nothing to lose
            effects.append(Lost(member.info.instance_id, reason))
        member.state, member.load, member.is_linked = State.DEAD, None, False
        log.warning("instance_id=%s is dead: %s", member.info.instance_id, reason)
        return effects

    def _drop(self, member: Member, reason: str) -> list[Effect]:
        effects = [] if member.state is State.DEAD else self._die(member, reason)
        del self.members[member.info.instance_id]
        return effects

    def _join(
        self, info: InstanceInfo, source: str, endpoint: str, now: float, peer: bytes
    ) -> list[Effect]:
        replaced: list[Effect] = []
        for other in [m for m in self.members.values() if m.endpoint == endpoint]:
            if other.is_connected:
                return self._refuse(info.instance_id, "its address is taken by a live instance")
            replaced += self._drop(other, "another instance has taken its address")
        if len(self.members) >= MAX_INSTANCES:
            dead = [m for m in self.members.values() if m.state is State.DEAD]
            if not dead:
                return self._refuse("", f"more than {MAX_INSTANCES} instances")
            del self.members[min(dead, key=lambda m: m.heard_at).info.instance_id]
        is_to_drain = self._drained.pop(info.instance_id, None) == info.incarnation
        self.members[info.instance_id] = Member(
            info, source, endpoint, now, drain_asked=is_to_drain, peer=peer
        )
        return [*replaced, Connect(info.instance_id, endpoint)]

    def _refuse(self, instance_id: str, reason: str) -> list[Effect]:
        """Count it; log it and keep the reason once, in bounded room."""
        self.num_refused += 1
        if self.refusals.get(instance_id) != reason and len(self.refusals) < MAX_INSTANCES:
            self.refusals[instance_id] = reason
            log.warning("instance_id=%r refused: %s", instance_id, reason)
        return []


def _texts(adapter: AdapterInfo) -> tuple[str, ...]:
    return adapter.name, adapter.digest, adapter.root, adapter.parent


def problem_of(info: InstanceInfo) -> str:
    """Why an instance cannot be used at all; empty if it can."""
    texts = [value for value in (getattr(info, f) for f in info.__struct_fields__) if value]
    if any(isinstance(text, str) and len(text) > MAX_TEXT for text in texts):
        return f"a field is longer than {MAX_TEXT} characters"
    if len(info.adapters) > MAX_ADAPTERS:
        return f"more than {MAX_ADAPTERS} adapters"
    if any(max(map(len, _texts(adapter))) > MAX_TEXT for adapter in info.adapters):
        return f"a field of an adapter is longer than {MAX_TEXT} characters"
    if not (info.instance_id and info.incarnation and info.model):
        return "instance_id, incarnation and model must not be empty"
    if info.wire_version != WIRE_VERSION:
        return f"wire_version {info.wire_version}, this proxy speaks {WIRE_VERSION}"
    try:
        endpoint = urlsplit(info.endpoint)
        if endpoint.scheme == "tcp" and endpoint.hostname and endpoint.port:
            return ""
    except ValueError:
        pass
    return "endpoint is not tcp://host:port"


def reachable(endpoint: str, host: str) -> str:
    """The endpoint with `host` in place of a wildcard address."""
    parts = urlsplit(endpoint)
    if host and parts.hostname in ("0.0.0.0", "*", "::"):
        named = f"[{host}]" if ":" in host else host
        return f"tcp://{named}:{parts.port}"
    return endpoint
