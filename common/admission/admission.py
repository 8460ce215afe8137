"""The waiting room in front of an engine or a fleet: who comes in, who waits, who is sent away.

    enter ──refused: the room is full, or the first token would come too late
      │
      ▼           room in the fleet          turn                first token
    QUEUE ────────────────────────▶ called ──────▶ PREFILL ────────────────▶ DECODE
      │                                │              │                        │
      └── waited too long, closed ─────┴──────────────┴── leave ───────────────┴──▶ LEFT

Who goes next is `fair_queue`'s to say, how long it takes `forecast`'s; here are the clock, the
places and the waking of tasks. One place is called at a time: the next only when the one before
has gone in and shows in the capacity's own books.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.admission.fair_queue import FairQueue, Waiting
from common.admission.forecast import PromptTime, QueueFlow, excess_s, forecast
from common.admission.tally import OwnTally, Tally
from common.errors import Overloaded, QueueTimeout, TtftTooLong, Unavailable, XpydError

TICK_S = 0.05  # while somebody waits: loads are reported, waits end
AHEAD_S = 0.25  # of prefill is sent out before it is needed, so that nobody runs dry
FIRST_BACKLOG = 4096  # tokens of that, while nothing is known of their speed
MAX_BACKLOG = 1 << 16
UNKNOWN_SEATS = 256
ONLY_BACKLOGS = 4  # times the backlog, for a tenant that runs nothing
RETRY_S = (1.0, 60.0)  # how soon and how late a client is told to come back
OUTCOMES = ("admitted", "timeout", "closed", "left")  # of waiting; "left": the client, a deadline


def seats_of(max_num_seqs: int, *, is_only: bool = False) -> int:
    """How many may be sent to an engine that runs so many at once (0: it does not say). A few
    more: whoever gets a seat should be there when it becomes free.

    is_only:  `Want.is_only`; for these there are a few more, so that no crowd is before them
    """
    known = max_num_seqs or UNKNOWN_SEATS
    return known + max(2, known // 8) * (2 if is_only else 1)


@dataclass(frozen=True, slots=True)
class Want:
    """What the next request needs."""

    num_tokens: int  # of its prompt
    max_backlog: int  # prompt tokens that may be before it where it goes
    num_running: int  # how many came in here and have not left
    num_begun: int = 0  # prompt tokens of those that have no first token yet
    is_only: bool = False  # its tenant runs nothing, and engines will take it first


def backlog_of(want: Want) -> int:
    """How many prompt tokens may be before it; what is a crowd's is not before `is_only`."""
    return max(1, want.max_backlog) * (ONLY_BACKLOGS if want.is_only else 1)


class Capacity(Protocol):
    """What is behind the waiting room. Asked often: answers from books, at once."""

    def has_room(self, want: Want) -> bool:
        """Could it be begun soon? True also if it would be refused: then it is told why."""
        ...

    def backlog(self) -> int:
        """Prompt tokens that were sent out and are not computed yet, where they are fewest."""
        ...


class Unlimited:
    """A capacity that never fills."""

    def has_room(self, want: Want) -> bool:
        return True

    def backlog(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    max_waiting: int = 1024  # then new ones get 429
    max_wait_s: float = 60.0
    slo_ttft_s: float | None = None  # beyond it, by the forecast, new ones get 429


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence that wants to run."""

    tenant: str
    num_tokens: int  # of its prompt
    priority: int = 0  # lower goes first, among those of its tenant
    weight: float = 1.0  # the tenant's share, beside others that wait


class Stage(str, enum.Enum):
    QUEUE = "queue"
    PREFILL = "prefill"  # everything from the queue to the first token
    DECODE = "decode"
    LEFT = "left"


class Place:
    """One sequence's way through. `leave` is idempotent and must be called in the end."""

    def __init__(self, owner: Admission, ask: Ask, ticket: int, now: float) -> None:
        self.ask = ask
        self.ticket = ticket
        self.entered_at = now
        self.stage = Stage.QUEUE
        self._owner = owner
        self._is_called = False
        self._error: XpydError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._called_at = 0.0
        self._work = 0  # tokens to compute before its first token, when it was called

    async def turn(self) -> None:
        """Returns when the sequence may run; the caller sends it out before it waits for anything.
        Raises QueueTimeout or Unavailable."""
        if not self._is_called and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        self.stage = Stage.PREFILL
        self._owner.went_in(self)

    def came(self, num_tokens: int, num_cached: int = 0) -> None:
        """So many tokens of its answer have come; `num_cached` of its prompt were not computed."""
        if self.stage is Stage.PREFILL:
            self.stage = Stage.DECODE
            seconds = time.monotonic() - self._called_at
            self._owner.saw_first(self, self._work - num_cached, seconds)
        self._owner.charge(self.ask.tenant, num_tokens)

    def leave(self) -> None:
        if self.stage is not Stage.LEFT:
            before, self.stage = self.stage, Stage.LEFT
            self._owner.left(self, before)

    def call(self, now: float, backlog: int) -> None:
        self._is_called, self._called_at = True, now
        self._work = backlog + self.ask.num_tokens
        self._wake()

    def refuse(self, error: XpydError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _ignore(outcome: str, wait_s: float) -> None:
    """Nobody watches."""


class Admission:
    """One per app, used in its event loop only."""

    def __init__(
        self,
        capacity: Capacity,
        limits: AdmissionLimits | None = None,
        tally: Tally | None = None,
    ) -> None:
        """`tally`: of who waits, where others keep the same bound."""
        self._tally = tally or OwnTally()
        self.limits = limits or AdmissionLimits()
        self.observe: Callable[[str, float], None] = _ignore  # an outcome and how long it waited
        self.num_running = 0
        self._running: dict[str, int] = {}  # by tenant
        self._num_begun = 0  # prompt tokens of those that run and have no first token
        self._capacity = capacity
        self._queue = FairQueue()
        self._waiting: dict[int, Place] = {}  # by ticket, as they came
        self._called: Place | None = None  # and not gone in yet
        self._prompts = PromptTime()
        self._flow = QueueFlow()
        self._is_held_up = False  # somebody waits because there is no room
        self._timer: asyncio.TimerHandle | None = None
        self._closed = ""  # why

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        return self._queue.num_tokens

    def enter(self, asks: Sequence[Ask]) -> list[Place]:
        """Places for all sequences of one request, or for none. Raises Overloaded, TtftTooLong or
        Unavailable."""
        self._check(asks)
        now, places = time.monotonic(), []
        for ask in asks:
            ticket = self._queue.push(
                ask.tenant, ask.num_tokens, priority=ask.priority, weight=ask.weight
            )
            place = self._waiting[ticket] = Place(self, ask, ticket, now)
            places.append(place)
        self._call_next()
        return places

    def close(self, reason: str) -> None:
        """Nobody comes in any more; who waits is told so."""
        self._closed = reason
        for place in list(self._waiting.values()):
            self._turn_away(place, "closed", Unavailable(reason))

    # --- what places tell ------------------------------------------------------------------------

    def went_in(self, place: Place) -> None:
        self.num_running += 1
        self._running[place.ask.tenant] = self._running.get(place.ask.tenant, 0) + 1
        self._num_begun += place.ask.num_tokens
        if self._called is place:
            self._called = None
        self._soon()

    def saw_first(self, place: Place, num_tokens: int, seconds: float) -> None:
        self._num_begun -= place.ask.num_tokens
        self._prompts.observe(max(1, num_tokens), seconds)
        self._soon()

    def charge(self, tenant: str, num_tokens: int) -> None:
        self._queue.charge(tenant, num_tokens)

    def left(self, place: Place, stage: Stage) -> None:
        if stage is not Stage.QUEUE:
            self._went_out(place.ask.tenant)
        if stage is Stage.PREFILL:
            self._num_begun -= place.ask.num_tokens
        if self._called is place:
            self._called = None
        if self._take_out(place):
            self.observe("left", time.monotonic() - place.entered_at)
        self._soon()

    # --- inside ----------------------------------------------------------------------------------

    def _check(self, asks: Sequence[Ask]) -> None:
        """Counted among those who wait, or refused."""
        if self._closed:
            raise Unavailable(self._closed)
        waiting = self._tally.add(len(asks), self.limits.max_waiting)
        if waiting is not None:
            rate = self._flow.rate
            wait_s = self._queue.num_tokens / rate if rate else 0.0
            raise _later(Overloaded(f"{waiting} requests are waiting; try again later"), wait_s)
        if (slo_s := self.limits.slo_ttft_s) is not None:
            try:
                self._check_forecast(asks[0], slo_s)
            except TtftTooLong:
                self._tally.less(len(asks))
                raise

    def _check_forecast(self, first: Ask, slo_s: float) -> None:
        before = self._queue.tokens_before(first.tenant, first.priority, first.weight)
        backlog = self._capacity.backlog()
        expected = forecast(self._prompts, self._flow, first.num_tokens, before, backlog)
        late_s = excess_s(expected, slo_s)
        if late_s > 0.0:
            total_s = expected.wait_s + expected.own_s
            reason = f"the first token would take about {total_s:.1f} s, the target is {slo_s:g} s"
            raise _later(TtftTooLong(f"{reason}; try again later"), late_s)

    def _went_out(self, tenant: str) -> None:
        self.num_running -= 1
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]

    def _next(self) -> Waiting | None:
        """Whose turn it is, if there is room; else somebody who has nothing running at all and for
        whom there is: engines take turns between tenants, so the crowd's work is not before it."""
        for passed_over in ((), self._running):
            head = self._queue.head(passed_over)
            if head is not None and self._capacity.has_room(self._want(head)):
                return head
        return None

    def _want(self, head: Waiting) -> Want:
        is_only = bool(self._running) and head.tenant not in self._running
        backlog = self._max_backlog()
        return Want(head.cost, backlog, self.num_running, self._num_begun, is_only)

    def _call_next(self) -> None:
        if not self._waiting or self._called is not None:
            return
        head = self._next()
        now = time.monotonic()
        if head is None:
            if not self._is_held_up:
                self._is_held_up = True
                self._flow.began(now)
            self._arm()
            return
        if self._is_held_up:
            self._flow.left(head.cost, now)
        place = self._waiting.pop(self._queue.pop(head.ticket).ticket)
        self._tally.less(1)
        self._is_held_up = self._is_held_up and bool(self._waiting)
        self._called = place
        place.call(now, self._capacity.backlog())
        self.observe("admitted", now - place.entered_at)

    def _max_backlog(self) -> int:
        """Prompt tokens that may be under way at one place beyond what is being computed."""
        if not self._prompts.is_known:
            return FIRST_BACKLOG
        _, per_token = self._prompts.line
        return min(MAX_BACKLOG, int(AHEAD_S / per_token)) if per_token else MAX_BACKLOG

    def _take_out(self, place: Place) -> bool:
        """It waits no more. False: it did not."""
        if self._waiting.pop(place.ticket, None) is None:
            return False
        self._tally.less(1)
        self._queue.remove(place.ticket)
        self._is_held_up = self._is_held_up and bool(self._waiting)
        return True

    def _turn_away(self, place: Place, outcome: str, error: XpydError) -> None:
        self._take_out(place)
        self.observe(outcome, time.monotonic() - place.entered_at)
        place.refuse(error)

    def _soon(self) -> None:
        """After whoever runs now has done what changes the capacity's books."""
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._call_next)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for place in list(self._waiting.values()):  # the oldest first
            if now - place.entered_at < self.limits.max_wait_s:
                break
            waited = f"no instance had room within {self.limits.max_wait_s:g} s; try again later"
            self._turn_away(place, "timeout", QueueTimeout(waited))
        self._call_next()
        if self._waiting:
            self._arm()


def _later(error: XpydError, seconds: float) -> XpydError:
    """With the time after which asking again is worth it."""
    soonest, latest = RETRY_S
    error.retry_after_s = min(latest, max(soonest, seconds))
    return error
