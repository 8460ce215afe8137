"""The fleet as an `EngineClient`: carries each request's choreography between links and client.

What to do is decided in `choreography` (one request), `policy` (which instances) and `membership`
(who is alive). Here are only the tables between them, and the queue each client reads from.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace as replace_facts
from typing import Any

from msgspec.structs import replace

from common.admission.admission import Admission, AdmissionLimits, Want
from common.admission.tally import Tally
from common.cluster_key import ClusterKey
from common.engine_client import ModelCard
from common.errors import BadRequest, Overloaded, Unavailable, XpydError, from_wire
from common.request import EngineRequest, TokenEvent
from common.wire import (
    Abort,
    Accepted,
    AdapterDone,
    AdaptersChanged,
    Failed,
    Prefixes,
    RoleSet,
    Tokens,
    WatchPrefixes,
)
from proxy.adapters import FleetAdapters, adapter_cards
from proxy.choreography import Action, AskRoute, Choreography, End, Limits, Phase, Send
from proxy.disaggregation import Disaggregation
from proxy.estimates import Estimates
from proxy.fleet_view import Accounts, view_fleet
from proxy.flight import Counts, Flight
from proxy.links import Links
from proxy.membership import NEW_ROLE, Member, Membership
from proxy.other_source import other_source
from proxy.policies import POLICIES, reads_prefixes
from proxy.policy import (
    NoInstance,
    Pair,
    Policy,
    RequestFacts,
    Route,
    Snapshot,
    choose_pair,
)
from proxy.prefix_follower import PrefixFollower, PromptPrefix
from proxy.role_switch import RoleSwitches
from proxy.room import backlog, has_room
from proxy.sightings import Failures, Pairs, Trip

log = logging.getLogger(__name__)

DEFAULT_LIMITS = Limits()
UNREAD_S = 30.0  # a client that takes nothing for so long, with tokens waiting, is given up
_PREFILLING = (Phase.ACCEPTING, Phase.PREFILLING)


class Fleet:
    """Instances found by registry, static list or admin API, as one engine."""

    def __init__(
        self,
        membership: Membership | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        admission: AdmissionLimits | None = None,
        prefill_policy: str = "least_loaded",
        decode_policy: str = "least_loaded",
        disaggregation: Disaggregation | None = None,
        key: ClusterKey | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.proxy_id = f"proxy-{uuid.uuid4().hex}"
        self.membership = membership or Membership()
        self.counts = Counts()
        self.pairs = Pairs()
        self.failures = Failures()
        self.is_draining = False
        self.can_read: Callable[[], bool] = lambda: True  # is the front end ready, too?
        self.advice: Callable[[], dict[str, Any] | None] = lambda: None  # of a controller
        self.idle = asyncio.Event()  # set while no request is in flight
        self.idle.set()
        self.links = Links(
            self.membership,
            proxy_id=self.proxy_id,
            on_message=self._on_message,
            on_lost=self._on_lost,
            on_tick=self._on_tick,
            key=key,
        )
        self.roles = RoleSwitches(self.links.send)
        self.adapters = FleetAdapters(self._serving, self.links.send)
        self._limits = limits
        self.admission = Admission(self, admission, tally)
        self._prefill_policy: Policy = POLICIES[prefill_policy][0]
        self._decode_policy: Policy = POLICIES[decode_policy][1]
        self.disaggregation = disaggregation or Disaggregation()
        self.prefixes = (
            PrefixFollower()
            if self.disaggregation.reads_prefixes
            or any(map(reads_prefixes, (prefill_policy, decode_policy)))
            else None
        )
        self.estimates = Estimates()
        self._seed = uuid.uuid4().int & 0xFFFF_FFFF  # proxies should not all draw the same
        self._flights: dict[str, Flight] = {}  # by the id of the current attempt
        self._num_in_flight = 0
        self._accounts = Accounts()
        self._model = ""
        self._created = int(time.time())
        self.began = time.monotonic()

    def start(self, registry: str = "", followed: str = "") -> None:
        self.links.start(registry, followed)

    async def close(self) -> None:
        """Abort what still runs, then let the links go."""
        for flight in list(self._flights.values()):
            flight.error = Unavailable("the proxy is shutting down")
            self._apply(flight, flight.machine.client_gone())
        await self.links.close()

    # --- EngineClient ------------------------------------------------------------------------

    def models(self) -> list[ModelCard]:
        model = self.served_model()
        infos = [member.info for member in self._serving().values()]
        if not infos:
            return []
        shortest = min(info.max_model_len for info in infos)
        card = ModelCard(model, shortest, self._created, pooled=infos[0].pooled)
        return [card, *adapter_cards(card, infos)]

    def is_ready(self) -> bool:
        if self.is_draining or not self.can_read():
            return False
        facts = RequestFacts(num_tokens=1)
        snapshot = self._snapshot()
        return not isinstance(self._choose(snapshot, facts), NoInstance)

    # --- the waiting room's Capacity ---------------------------------------------------------

    def has_room(self, want: Want) -> bool:
        return has_room(self._snapshot(), want, whole=self.disaggregation.mode == "never")

    def backlog(self) -> int:
        return backlog(self._snapshot(), whole=self.disaggregation.mode == "never")

    def _snapshot(self) -> Snapshot:
        return view_fleet(self.membership, self._accounts, self.served_model())

    # --- requests ----------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        flight = self._admit(request)
        loop = asyncio.get_running_loop()
        outbox = flight.outbox
        try:
            self._apply(flight, flight.machine.start())
            while True:
                while outbox:
                    event = outbox.popleft()
                    flight.unread.taken(event)
                    flight.taken_at = time.monotonic()
                    yield event
                    if event.finish_reason is not None:
                        return
                if flight.error is not None:
                    raise flight.error
                flight.waiter = loop.create_future()
                await flight.waiter
        finally:
            self._apply(flight, flight.machine.client_gone())

    # --- what the server shows ---------------------------------------------------------------

    @property
    def accounts(self) -> Accounts:
        return self._accounts

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @property
    def num_waiting(self) -> int:
        """Requests in flight that no instance works on."""
        return sum(f.machine.phase is Phase.WAITING for f in self._flights.values())

    def num_assigned(self, instance_id: str) -> int:
        """Requests of ours that this instance works on."""
        return self._accounts.num_requests(instance_id)

    def served_model(self) -> str:
        """The model of this fleet: the first one found, as long as anybody has it."""
        connected = [m.info.model for m in self.membership.members.values() if m.is_connected]
        if connected and self._model not in connected:
            self._model, self._created = connected[0], int(time.time())
        return self._model

    def _serving(self) -> dict[str, Member]:
        """Connected instances of the served model."""
        model, members = self.served_model(), self.membership.members.items()
        return {i: m for i, m in members if m.is_connected and m.info.model == model}

    # --- events ------------------------------------------------------------------------------

    def _on_message(self, instance_id: str, message: Any) -> None:
        now = time.monotonic()
        if isinstance(message, Tokens):
            self._on_tokens(instance_id, message, now)
        elif isinstance(message, Prefixes):
            if self.prefixes is not None:
                self.prefixes.came(instance_id, message, now)
        elif isinstance(message, RoleSet):
            self.roles.answered(instance_id, message)
        elif isinstance(message, AdaptersChanged):
            self.membership.adapters_changed(instance_id, message)
        elif isinstance(message, AdapterDone):
            self.adapters.answered(instance_id, message)
        elif flight := self._flights.get(message.request_id):
            machine, attempt = flight.machine, message.attempt
            if isinstance(message, Accepted):
                actions = machine.accepted(instance_id, attempt, message.handle, now)
            else:
                assert isinstance(message, Failed)
                error = from_wire(message.code, message.message, message.param)
                self._note("attempt failed", error.message, flight, instance_id)
                actions = machine.failed(instance_id, attempt, error, now)
            self._apply(flight, actions)

    def _on_tokens(self, instance_id: str, message: Tokens, now: float) -> None:
        flights = self._flights
        for event, attempt in zip(message.events, message.attempts, strict=False):
            flight = flights.get(event.request_id)
            if flight is None:
                self._on_stray(instance_id, event)
                continue
            if event.timings:
                event = self._timed(flight, instance_id, event, now)
            machine = flight.machine
            actions = machine.tokens_came(instance_id, attempt, event, now)
            if len(actions) == 1 and machine.phase is flight.phase:
                action = actions[0]
                if isinstance(action, TokenEvent):  # nearly always
                    flight.put(action)
                    flight.wake()
                    if flight.unread.is_too_much(len(flight.outbox)):
                        self._give_up(flight)
                    continue
            self._apply(flight, actions)

    def _timed(self, flight: Flight, instance_id: str, event: TokenEvent, now: float) -> TokenEvent:
        """The first event of an attempt's instance: the proxy adds what it knows of its way."""
        trip = flight.trip
        flight.observed.first_event(self.estimates, flight.machine, instance_id, event, now)
        if trip.pair is not None:
            self.pairs.handed_over(trip.pair, event.timings, now)
        return replace(event, timings=event.timings | trip.timings())

    def _note(self, what: str, message: str, flight: Flight | None, instance_id: str = "") -> None:
        request_id = flight.machine.request.request_id if flight is not None else ""
        self.failures.note(time.time(), what, message, instance=instance_id, request_id=request_id)

    def _on_stray(self, instance_id: str, event: TokenEvent) -> None:
        """Somebody computes what nobody wants: an Abort is under way, or was lost."""
        self.counts.stray_events += 1
        if event.finish_reason is None:
            self.links.send(instance_id, Abort(event.request_id))

    def _on_lost(self, instance_id: str, reason: str) -> None:
        now = time.monotonic()
        if reason != NEW_ROLE:
            self.counts.lost_instances += 1
            self._note("instance lost", reason, None, instance_id)
            self.roles.lost(instance_id)
            self.adapters.lost(instance_id)
        if self.prefixes is not None:
            self.prefixes.lost(instance_id)
        for flight in [f for f in self._flights.values() if instance_id in f.assigned]:
            self._apply(flight, flight.machine.lost(instance_id, reason, now))

    def _on_tick(self, now: float) -> None:
        self._accounts.forget(self.membership)
        self.estimates.keep(self.membership.members)
        self._watch_prefixes(now)
        for flight in list(self._flights.values()):
            if now >= flight.machine.deadline:
                self._apply(flight, flight.machine.tick(now))
            if flight.outbox and now - flight.taken_at > UNREAD_S and flight.waiter is None:
                self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        flight.error = Unavailable("the client does not read its answer")
        self._note("client stalled", flight.error.message, flight)
        self._apply(flight, flight.machine.client_gone())

    def _watch_prefixes(self, now: float) -> None:
        if self.prefixes is None:
            return
        members = self.membership.members.items()
        connected = {name: m.info.incarnation for name, m in members if m.is_connected}
        for instance_id in self.prefixes.due(connected, now):
            self.links.send(instance_id, WatchPrefixes())

    # --- actions -----------------------------------------------------------------------------

    def _apply(self, flight: Flight, actions: Iterable[Action]) -> None:
        """Bring about what the choreography decided, and what follows from that."""
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            if isinstance(action, TokenEvent):
                flight.put(action)
            elif isinstance(action, Send):
                if not self.links.send(action.instance_id, action.message):
                    reason = "it does not take messages"
                    now = time.monotonic()
                    todo.extend(flight.machine.lost(action.instance_id, reason, now))
            elif isinstance(action, AskRoute):
                todo.extend(flight.machine.routed(self._route(flight, action), time.monotonic()))
            else:
                self._on_end(flight, action)
        self._keep_books(flight)
        if flight.outbox or flight.machine.phase is Phase.ENDED:
            flight.wake()

    def _route(self, flight: Flight, ask: AskRoute) -> Route:
        asked_at = time.monotonic()
        prefix, cached = self._look_up(flight)
        if ask.loader is not None:  # it was expected to have all: that has not come
            cached = {**cached, ask.loader: flight.num_cached_on_decode}
        facts = RequestFacts(
            ask.num_tokens,
            flight.turn,
            ask.avoid,
            ask.prefer_whole or self.disaggregation.mode == "never",
            self._seed,
            flight.machine.request.session_id,
            cached,
        )
        fingerprint = flight.kv_fingerprint if flight.machine.has_output else ""
        adapter = flight.machine.request.adapter
        snapshot = view_fleet(self.membership, self._accounts, flight.model, fingerprint, adapter)
        if adapter and not snapshot.instances:
            return NoInstance("no instance that holds this LoRA adapter is ready")
        route = self._other_source(snapshot, facts, ask.loader) or self._choose(snapshot, facts)
        if isinstance(route, NoInstance):
            return route
        if ask.loader is not None and isinstance(route, Pair):
            self.counts.other_sources += 1
        if isinstance(route, Pair):
            flight.num_cached_on_decode = cached.get(route.decode, 0)
            others = replace_facts(facts, avoid=facts.avoid | {route.prefill})
            if self._other_source(snapshot, others, route.decode) is not None:
                route = replace_facts(route, has_other_source=True)
        chosen = (route.prefill, route.decode) if isinstance(route, Pair) else (route.instance,)
        if isinstance(route, Pair):
            self.counts.routed_apart += 1
        else:
            self.counts.routed_whole += 1
        flight.kv_fingerprint = self.membership.members[chosen[0]].info.kv_fingerprint
        flight.num_cached = min(cached.get(chosen[0], 0), ask.num_tokens - 1)
        self.counts.cached_tokens += flight.num_cached
        flight.trip.routed(asked_at, time.monotonic(), chosen)
        if self.prefixes is not None and prefix is not None:
            for instance_id in chosen:
                hashes = prefix.hashes(self.membership.members[instance_id].info)
                self.prefixes.index.expect(instance_id, hashes, time.monotonic())
        return route

    def _other_source(
        self, snapshot: Snapshot, facts: RequestFacts, loader: str | None
    ) -> Pair | None:
        """Known only while prefix caches are followed."""
        if loader is None or self.prefixes is None:
            return None
        return other_source(snapshot, facts, loader, self.estimates, time.monotonic())

    def _look_up(self, flight: Flight) -> tuple[PromptPrefix | None, dict[str, int]]:
        """How much of the request's tokens is in whose prefix cache."""
        if self.prefixes is None:
            return None, {}
        prefix = PromptPrefix(flight.machine.request, flight.machine.tokens)
        members = self.membership.members.values()
        infos = [m.info for m in members if m.is_connected and m.info.model == flight.model]
        return prefix, prefix.cached_tokens(self.prefixes.index, infos, time.monotonic())

    def _choose(self, snapshot: Snapshot, facts: RequestFacts) -> Route:
        route = choose_pair(snapshot, facts, self._prefill_policy, self._decode_policy)
        route = self.disaggregation.decide(route, snapshot, facts, self.estimates, time.monotonic())
        if not snapshot.instances and self.membership.refusals:
            last = list(self.membership.refusals.values())[-1]
            return NoInstance(f"no instance is ready; one was refused: {last}")
        return route

    def _admit(self, request: EngineRequest) -> Flight:
        refusal: XpydError | None = None
        if self.is_draining:
            refusal = Unavailable("the proxy is shutting down")
        elif request.request_id in self._flights:
            refusal = BadRequest("a request with this id is running", "request_id")
        if refusal is not None:
            self._count_rejection(refusal)
            raise refusal
        machine = Choreography(request, self._limits)
        turn, now = self.counts.requests, time.monotonic()
        flight = Flight(
            machine, self.served_model(), turn, now, Trip(now), wire_id=request.request_id
        )
        self._flights[request.request_id] = flight
        self._num_in_flight += 1
        self.idle.clear()
        self.counts.requests += 1
        return flight

    def _on_end(self, flight: Flight, end: End) -> None:
        self._flights.pop(flight.wire_id, None)
        self._num_in_flight -= 1
        if not self._num_in_flight:
            self.idle.set()
        flight.error = flight.error or end.error
        if end.error is None:
            has_finish = bool(flight.outbox) and flight.outbox[-1].finish_reason is not None
            if has_finish:
                self.counts.finished += 1
            else:
                self.counts.aborted += 1
        elif flight.machine.attempt == 0 or isinstance(end.error, (BadRequest, Overloaded)):
            self._count_rejection(end.error)
        else:
            self.counts.failed += 1
            self._note("request lost", end.error.message, flight)
            log.warning(
                "request_id=%s failed after %d attempts: %s",
                flight.machine.request.request_id,
                flight.machine.attempt,
                end.error.message,
            )

    def _count_rejection(self, error: XpydError) -> None:
        self.counts.rejections[error.code] = self.counts.rejections.get(error.code, 0) + 1

    def _keep_books(self, flight: Flight) -> None:
        """After anything but a plain token: which attempt, on which instances, doing what."""
        machine = flight.machine
        flight.phase = machine.phase
        if machine.wire_id not in ("", flight.wire_id) and machine.phase is not Phase.ENDED:
            self._flights.pop(flight.wire_id, None)
            self._flights[machine.wire_id] = flight
            flight.wire_id = machine.wire_id
            self.counts.migrations += 1
        before, flight.assigned = flight.assigned, machine.instances
        queued_at = machine.prefill if machine.phase in _PREFILLING else None
        num_tokens = len(machine.request.prompt_token_ids) + len(machine.tokens)
        for instance_id in {*before, *flight.assigned} & self.membership.members.keys():
            self._accounts.reported(self.membership.members[instance_id])
        self._accounts.assign(id(flight), flight.assigned, queued_at, num_tokens, flight.num_cached)
