"""The life of one request across instances, as a state machine: events in, actions out, no I/O.

            P: RunPrefill        D: RunDecode             P's first token        D's first token
    NEW ──pair──▶ ACCEPTING ──Accepted──▶ PREFILLING ──▶ HANDING_OVER ──▶ RUNNING ──finish──▶ ENDED
     │ └──whole──────────────────────────────────────────────────────────▶   ▲
     │ no instance: refused                                                  │ D: RunWhole
     ▼                                                                       │
    ENDED     any of the four ──lost, failed, silent──▶ WAITING ──route──▶ next attempt, or ENDED

An attempt is one placement on instances. Each has its own request id on the wire, so neither late
messages nor an `Abort` can meet the wrong attempt. A new attempt continues after the tokens that
the client already has; because engines are deterministic it continues the same text.

The client gets each output position once and in order: what it already has is compared and dropped,
what runs ahead of P's first token is held back, and an attempt that loses or contradicts tokens has
failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from common.errors import (
    BadRequest,
    DeadlineExceeded,
    InstanceLost,
    Overloaded,
    PeerLost,
    TransferError,
    Unavailable,
    XpydError,
)
from common.request import EngineRequest, FinishReason, TokenEvent
from common.wire import Abort, KVHandle, RunDecode, RunPrefill, RunWhole
from proxy.policy import NoInstance, Pair, Route

MAX_EARLY = 1024  # events of D held back until P's first token is here


class Phase(str, Enum):
    NEW = "new"
    ACCEPTING = "accepting"
    PREFILLING = "prefilling"
    HANDING_OVER = "handing over"
    RUNNING = "running"
    WAITING = "waiting"
    ENDED = "ended"


_ACTIVE = frozenset((Phase.ACCEPTING, Phase.PREFILLING, Phase.HANDING_OVER, Phase.RUNNING))


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait (seconds), and how often to try."""

    accept_s: float = 10.0  # for P to answer with a handle
    orphan_s: float = 10.0  # for D to show a token after P has gone
    stall_s: float = 600.0  # for a token of live instances
    recovery_s: float = 15.0  # for other instances, once the first have failed
    backoff_s: float = 0.1  # before the same instances are asked again
    max_attempts: int = 4  # without a token of a decode instance in between


@dataclass(frozen=True, slots=True)
class Send:
    instance_id: str
    message: RunPrefill | RunDecode | RunWhole | Abort


@dataclass(frozen=True, slots=True)
class AskRoute:
    """Choose instances and answer with `routed`, at once."""

    num_tokens: int
    avoid: frozenset[str]
    prefer_whole: bool
    loader: str | None = None  # whose KV load has failed: it may load from somebody else


@dataclass(frozen=True, slots=True)
class End:
    """Always the last action, once. `error` is None if the client has the finish reason or left."""

    error: XpydError | None


Action = TokenEvent | Send | AskRoute | End  # a TokenEvent goes to the client


@dataclass(slots=True)
class Choreography:
    request: EngineRequest
    limits: Limits = Limits()
    phase: Phase = Phase.NEW
    attempt: int = 0
    wire_id: str = ""  # the request's id on the wire in this attempt
    prefill: str | None = None  # P of this attempt, while it matters
    decode: str | None = None  # D of this attempt, or who runs it whole
    deadline: float = 0.0  # from then on `tick` has something to do
    tokens: list[int] = field(default_factory=list)  # all output so far: the token log
    _sent: EngineRequest | None = None  # the request as this attempt carries it
    _has_other_source: bool = False
    _has_first: bool = False  # P's token of this attempt has come
    _early: list[TokenEvent] = field(default_factory=list)
    _num_failures: int = 0  # in a row
    _error: XpydError | None = None  # why the last attempt failed
    _avoid: set[str] = field(default_factory=set)
    _prefer_whole: bool = False
    _give_up_at: float | None = None

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.output_token_ids)

    @property
    def has_output(self) -> bool:
        """Has the client got a token?"""
        return len(self.tokens) > len(self.request.output_token_ids)

    @property
    def instances(self) -> tuple[str, ...]:
        """Who works on it, or is about to."""
        return tuple(i for i in (self.prefill, self.decode) if i is not None)

    # --- events ------------------------------------------------------------------------------

    def start(self) -> Sequence[Action]:
        return [self._ask()]

    def routed(self, route: Route, now: float) -> Sequence[Action]:
        """The answer to `AskRoute`."""
        assert self.phase in (Phase.NEW, Phase.WAITING), self.phase
        if isinstance(route, NoInstance):
            if self._error is None:
                return self._end(Unavailable(route.reason))
            return self._wait(now)
        prefill, decode = (
            (route.prefill, route.decode) if isinstance(route, Pair) else (None, route.instance)
        )
        if self._avoid & {prefill, decode}:  # nobody else is left
            if isinstance(self._error, Overloaded) and not self.has_output:
                return self._end(self._error)
            return self._wait(now)
        self.prefill, self.decode, self._give_up_at = prefill, decode, None
        self._has_other_source = isinstance(route, Pair) and route.has_other_source
        request = self._begin_attempt()
        if prefill is not None:
            self.phase, self.deadline = Phase.ACCEPTING, now + self.limits.accept_s
            return [Send(prefill, RunPrefill(request, self.attempt))]
        self.phase, self.deadline = Phase.RUNNING, now + self.limits.stall_s
        return [Send(decode, RunWhole(request, self.attempt))]

    def accepted(
        self, source: str, attempt: int, handle: KVHandle | None, now: float
    ) -> Sequence[Action]:
        """P has queued the prompt: D may begin to fetch while P computes."""
        if (source, attempt, self.phase) != (self.prefill, self.attempt, Phase.ACCEPTING):
            return ()
        if handle is None:
            return self._fail(source, PeerLost("accepted without a handle"), now)
        assert self.decode is not None
        assert self._sent is not None
        self.phase = Phase.HANDING_OVER if self._has_first else Phase.PREFILLING
        self.deadline = now + self.limits.stall_s
        run = RunDecode(self._sent, handle, attempt, self._has_other_source)
        return [Send(self.decode, run)]

    def tokens_came(
        self, source: str, attempt: int, event: TokenEvent, now: float
    ) -> Sequence[Action]:
        """`source` has computed tokens. The hot path: one call per request and step."""
        if attempt != self.attempt or source not in (self.prefill, self.decode):
            return ()
        if self.phase is not Phase.RUNNING and self.phase not in _ACTIVE:
            return ()
        if event.finish_reason is FinishReason.ABORT:
            gave_up = Unavailable("the instance gave the request up")
            return self._fail(source, gave_up, now, finished=source)
        if not event.token_ids and event.finish_reason is None:
            return ()
        if source == self.decode and self.phase is not Phase.ACCEPTING:
            if self.phase is Phase.RUNNING:
                return self._deliver(source, event, now)
            return self._take_over(source, event, now)
        if source == self.prefill:
            return self._first_token(source, event, now)
        return ()

    def failed(self, source: str, attempt: int, error: XpydError, now: float) -> Sequence[Action]:
        """`source` has given this attempt up and holds nothing for it any more."""
        if attempt != self.attempt or source not in self.instances or self.phase not in _ACTIVE:
            return ()
        if source == self.prefill and self._is_orphan_viable(error):
            return self._orphan(now)
        return self._fail(source, error, now, finished=source)

    def lost(self, source: str, reason: str, now: float) -> Sequence[Action]:
        """`source` does not answer any more, or not on the link that the attempt was sent on."""
        if source not in self.instances or self.phase not in _ACTIVE:
            return ()
        error = InstanceLost(f"the instance that ran the request was lost: {reason}")
        if source == self.prefill and self._is_orphan_viable(error):
            return self._orphan(now)
        return self._fail(source, error, now, finished=source, blame=False)

    def client_gone(self) -> Sequence[Action]:
        return () if self.phase is Phase.ENDED else self._end(None)

    def tick(self, now: float) -> Sequence[Action]:
        """Call now and then: does something only from `deadline` on."""
        if now < self.deadline or self.phase in (Phase.NEW, Phase.ENDED):
            return ()
        if self.phase is Phase.WAITING:
            if self._give_up_at is not None and now >= self._give_up_at:
                return self._end(self._error)
            return [self._ask()]
        if self.phase is Phase.ACCEPTING and self.prefill is not None:
            late = Unavailable("the prefill instance did not accept the request in time")
            return self._fail(self.prefill, late, now)
        if self.phase is Phase.HANDING_OVER and self.prefill is None:
            return self._fail("", PeerLost("the prefill instance died during the hand-over"), now)
        assert self.decode is not None
        return self._fail(self.decode, DeadlineExceeded("no token came for too long"), now)

    # --- tokens ------------------------------------------------------------------------------

    def _first_token(self, source: str, event: TokenEvent, now: float) -> Sequence[Action]:
        actions = list(self._deliver(source, event, now))
        if self.phase not in _ACTIVE or self._has_first:
            return actions
        self._has_first = True
        if self.phase is Phase.PREFILLING:
            self.phase = Phase.HANDING_OVER
        early, self._early = self._early, []
        for held in early:
            if self.decode is not None:
                actions += self.tokens_came(self.decode, self.attempt, held, now)
        return actions

    def _take_over(self, source: str, event: TokenEvent, now: float) -> Sequence[Action]:
        """D's first token: what P holds is not needed any more."""
        if event.index > len(self.tokens) and not self._has_first:
            if len(self._early) >= MAX_EARLY:
                return self._fail(source, PeerLost("the first token never came"), now)
            if not self._early:
                self.deadline = now + self.limits.orphan_s
            self._early.append(event)
            return ()
        actions: list[Action] = []
        assert self._sent is not None
        computed_itself = event.index <= len(self._sent.output_token_ids)
        if self.prefill is not None and computed_itself:  # then D did not release the offer
            actions.append(Send(self.prefill, Abort(self.wire_id)))
        self.prefill, self.phase = None, Phase.RUNNING
        self._early.clear()
        return [*actions, *self._deliver(source, event, now)]

    def _deliver(self, source: str, event: TokenEvent, now: float) -> Sequence[Action]:
        """Give the client what is new in `event`."""
        known = len(self.tokens) - event.index
        if known != 0:
            if known < 0 or event.index < 0:
                return self._fail(source, XpydError("tokens were lost on the way"), now)
            ours = tuple(self.tokens[event.index : event.index + len(event.token_ids)])
            if ours != event.token_ids[:known]:
                return self._fail(source, XpydError("instances disagree about a token"), now)
            event = _without(event, known)
            if not event.token_ids and event.finish_reason is None:
                return ()
        if self.attempt > 1:
            mine = () if self.has_output else event.prompt_logprobs
            event = replace(event, request_id=self.request.request_id, prompt_logprobs=mine)
        self.tokens.extend(event.token_ids)
        self.deadline = now + self.limits.stall_s
        if source == self.decode:
            self._num_failures = 0
        if event.finish_reason is None:
            return (event,)
        return [event, *self._end(None, finished=self.decode if source == self.decode else None)]

    # --- failure and end ---------------------------------------------------------------------

    def _is_orphan_viable(self, error: XpydError) -> bool:
        """P has gone, but only after it had computed everything: D may have the blocks."""
        return self.phase is Phase.HANDING_OVER and not isinstance(error, BadRequest)

    def _orphan(self, now: float) -> Sequence[Action]:
        self.prefill = None
        self.deadline = now + self.limits.orphan_s
        return ()

    def _fail(
        self,
        source: str,
        error: XpydError,
        now: float,
        *,
        finished: str | None = None,
        blame: bool = True,
    ) -> Sequence[Action]:
        """End the attempt. `finished` needs no Abort; who is to blame is not asked again soon."""
        self._num_failures += 1
        if isinstance(error, BadRequest) or self._num_failures >= self.limits.max_attempts:
            return self._end(error, finished=finished)
        aborts = self._aborts(finished)
        self._prefer_whole = isinstance(error, TransferError)
        loader = source if self._prefer_whole and source == self.decode else None
        culprit = self.prefill if self._prefer_whole else source
        if blame and culprit:
            self._avoid.add(culprit)
        self._error = error
        if self._give_up_at is None:
            self._give_up_at = now + self.limits.recovery_s
        self.phase, self.prefill, self.decode = Phase.WAITING, None, None
        return [*aborts, self._ask(loader)]

    def _wait(self, now: float) -> Sequence[Action]:
        """Ask again soon, and then ask anybody."""
        self._avoid.clear()
        self.phase = Phase.WAITING
        self.deadline = now + self.limits.backoff_s * 2 ** min(self._num_failures, 3)
        return ()

    def _end(self, error: XpydError | None, finished: str | None = None) -> Sequence[Action]:
        aborts = self._aborts(finished)
        self.phase, self.prefill, self.decode = Phase.ENDED, None, None
        self._early.clear()
        return [*aborts, End(error)]

    def _aborts(self, finished: str | None) -> list[Action]:
        """Tell everybody who has this attempt and is not `finished` with it.

        D first: it should not take the end of P's offer for a failed load, and recompute.
        """
        told = [] if self.phase in (Phase.NEW, Phase.WAITING) else list(self.instances)
        if self.phase is Phase.ACCEPTING:
            told.remove(self.decode or "")  # it has not heard of the request yet
        return [Send(i, Abort(self.wire_id)) for i in reversed(told) if i != finished]

    # --- attempts ----------------------------------------------------------------------------

    def _ask(self, loader: str | None = None) -> AskRoute:
        num_tokens = len(self.request.prompt_token_ids) + len(self.tokens)
        return AskRoute(num_tokens, frozenset(self._avoid), self._prefer_whole, loader)

    def _begin_attempt(self) -> EngineRequest:
        self.attempt += 1
        self.wire_id = self.request.request_id
        self._has_first = False
        self._early.clear()
        self._sent = self.request
        if self.attempt > 1:
            self.wire_id += f"~{self.attempt}"
            sampling = self.request.sampling
            if self.has_output and sampling.prompt_logprobs is not None:
                sampling = replace(sampling, prompt_logprobs=None)
            self._sent = replace(
                self.request,
                request_id=self.wire_id,
                output_token_ids=tuple(self.tokens),
                sampling=sampling,
            )
        return self._sent


def _without(event: TokenEvent, known: int) -> TokenEvent:
    """The event less its first `known` tokens."""
    return replace(
        event,
        index=event.index + min(known, len(event.token_ids)),
        token_ids=event.token_ids[known:],
        logprobs=event.logprobs[known:],
    )
