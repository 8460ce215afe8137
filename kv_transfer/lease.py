"""Who may read which held blocks, and when they go back: the life of an offer, as a state machine.

    open ──extend──▶ open ──complete──▶ complete ──finish──▶ released
      │                                    │
      └──── expire ──▶ expired ◀── expire ─┤
      └──── abort ───▶ aborted ◀── abort ──┘

A prompt's offer is open while prefill runs; blocks join as they fill. One consumer at a time may
claim it. Each way out hands every block of the offer back exactly once, to the caller of the method
that ended it.

The lease is a deadline. It starts when the offer first holds a block or is claimed. Until a
consumer claims the offer, prefill's progress renews it; from then on only the consumer does.

No I/O, no clock (`now` is any monotonic time in seconds), no threads; block ids are only numbers
here.
"""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from common.errors import BadRequest, HandleRefused, LeaseExpired, TransferError

NAME_LEN = 8  # leading hex digits of an offer id: its name in ledgers and logs; the rest is secret
MAX_TOMBSTONES = 4096


class State(str, Enum):
    OPEN = "open"
    COMPLETE = "complete"
    RELEASED = "released"
    EXPIRED = "expired"
    ABORTED = "aborted"


class Event(str, Enum):
    EXTEND = "extend"
    COMPLETE = "complete"
    FINISH = "finish"
    EXPIRE = "expire"
    ABORT = "abort"


MOVES: dict[State, dict[Event, State]] = {
    State.OPEN: {
        Event.EXTEND: State.OPEN,
        Event.COMPLETE: State.COMPLETE,
        Event.EXPIRE: State.EXPIRED,
        Event.ABORT: State.ABORTED,
    },
    State.COMPLETE: {
        Event.FINISH: State.RELEASED,
        Event.EXPIRE: State.EXPIRED,
        Event.ABORT: State.ABORTED,
    },
    State.RELEASED: {},
    State.EXPIRED: {},
    State.ABORTED: {},
}


@dataclass(slots=True)
class Offer:
    """One prompt's blocks, in token order, and who may read them."""

    offer_id: str  # the secret a consumer must show
    request_id: str
    num_blocks: int  # when complete
    since: float
    state: State = State.OPEN
    deadline: float = math.inf  # of the lease
    block_ids: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)  # if the transport uses them
    checksums: list[int] = field(default_factory=list)  # if it makes them
    first_token: int | None = None  # known once complete
    claim: str | None = None  # the token of the consumer that reads
    peer: str = ""  # that consumer's instance id

    @property
    def is_live(self) -> bool:
        return bool(MOVES[self.state])

    @property
    def name(self) -> str:
        return self.offer_id[:NAME_LEN]


@dataclass(frozen=True, slots=True)
class Ended:
    """An offer that has ended; its blocks are the caller's to hand back."""

    state: State
    request_id: str
    claim: str | None
    block_ids: tuple[int, ...]


class LeaseTable:
    def __init__(
        self, lease_s: float, random_hex: Callable[[int], str] = secrets.token_hex
    ) -> None:
        """`random_hex(n)`: 2 n digits that nobody can guess."""
        self.lease_s = lease_s
        self._random_hex = random_hex
        self._offers: dict[str, Offer] = {}  # by name
        self._by_request: dict[str, Offer] = {}
        self._by_claim: dict[str, Offer] = {}
        self._tombstones: dict[str, tuple[str, State]] = {}  # name: (offer id, how it ended)

    # --- the producer's side -----------------------------------------------------------------

    def offer(self, request_id: str, num_blocks: int, now: float) -> Offer:
        """Start an offer without blocks. Raises BadRequest while the request has a live one."""
        if request_id in self._by_request:
            raise BadRequest("the KV of this request is already being offered", "request_id")
        offer_id = self._random_hex(NAME_LEN // 2 + 16)  # name, then 128 secret bits
        while offer_id[:NAME_LEN] in self._offers or offer_id[:NAME_LEN] in self._tombstones:
            offer_id = self._random_hex(NAME_LEN // 2 + 16)
        offer = Offer(offer_id, request_id, num_blocks, since=now)
        self._offers[offer.name] = self._by_request[request_id] = offer
        return offer

    def extend(
        self,
        offer: Offer,
        block_ids: Sequence[int],
        epochs: Sequence[int],
        hashes: Sequence[str],
        checksums: Sequence[int],
        first_token: int | None,
        now: float,
    ) -> None:
        """Add the offer's next blocks: from now on they are the table's to hand back. With the
        last of them comes the token that prefill sampled. The offer must be live."""
        assert len(block_ids) == len(epochs), "one epoch per block"
        num_blocks = len(offer.block_ids) + len(block_ids)
        is_last = first_token is not None
        assert num_blocks <= offer.num_blocks, "more blocks than were offered"
        assert not is_last or num_blocks == offer.num_blocks, "fewer blocks than were offered"
        self._move(offer, Event.COMPLETE if is_last else Event.EXTEND)
        offer.block_ids += block_ids
        offer.epochs += epochs
        offer.hashes += hashes
        offer.checksums += checksums
        offer.first_token = first_token
        if offer.claim is None:
            offer.deadline = now + self.lease_s

    def abort(self, offer: Offer) -> Ended | None:
        """End the offer; None if it has ended already."""
        return self._end(offer, Event.ABORT) if offer.is_live else None

    def expire(self, now: float) -> list[Ended]:
        """End all offers whose lease is over."""
        over = [offer for offer in self._offers.values() if offer.deadline <= now]
        return [self._end(offer, Event.EXPIRE) for offer in over]

    def next_deadline(self) -> float:
        """When `expire` has something to do, if nothing else happens; infinity if never."""
        return min((offer.deadline for offer in self._offers.values()), default=math.inf)

    # --- the consumer's side -----------------------------------------------------------------

    def find(self, offer_id: str) -> Offer:
        """Raises LeaseExpired or HandleRefused if there is no such live offer."""
        name = offer_id[:NAME_LEN]
        offer = self._offers.get(name)
        if offer is not None and _same(offer.offer_id, offer_id):
            return offer
        ended = self._tombstones.get(name)
        if ended is not None and _same(ended[0], offer_id):
            raise _ended_error(ended[1])
        raise HandleRefused("no such offer")

    def claim(self, offer_id: str, claim: str, peer: str, now: float) -> Offer:
        """Make `claim` the one reader. Raises LeaseExpired or TransferError, saying why not."""
        offer = self.find(offer_id)
        if claim in self._by_claim:
            raise HandleRefused("claim tokens are used once")
        if offer.deadline <= now:
            raise _ended_error(State.EXPIRED)
        if offer.claim is not None:
            raise HandleRefused("another consumer reads this offer")
        offer.claim, offer.peer = claim, peer
        offer.deadline = now + self.lease_s
        self._by_claim[claim] = offer
        return offer

    def renew(self, claim: str, now: float) -> None:
        self._claimed(claim, now).deadline = now + self.lease_s

    def reading(self, claim: str, now: float) -> Offer:
        """The offer, if `claim` may read it now. Raises LeaseExpired."""
        return self._claimed(claim, now)

    def check(self, claim: str, now: float) -> Offer:
        """The offer, if `claim` may finish it now. Raises LeaseExpired or TransferError."""
        offer = self._claimed(claim, now)
        if offer.state is not State.COMPLETE:
            raise TransferError("finished before all blocks were offered")
        return offer

    def finish(self, claim: str, now: float) -> Ended:
        """The consumer has read everything. Raises as `check`."""
        return self._end(self.check(claim, now), Event.FINISH)

    def cancel(self, claim: str) -> Ended | None:
        """The consumer wants no more; None if the offer has ended."""
        offer = self._by_claim.get(claim)
        return None if offer is None else self._end(offer, Event.ABORT)

    # --- questions ---------------------------------------------------------------------------

    def of_request(self, request_id: str) -> Offer | None:
        return self._by_request.get(request_id)

    def of_claim(self, claim: str) -> Offer | None:
        return self._by_claim.get(claim)

    def offers(self) -> list[Offer]:
        return list(self._offers.values())

    @property
    def num_claims(self) -> int:
        return len(self._by_claim)

    # --- inside ------------------------------------------------------------------------------

    def _claimed(self, claim: str, now: float) -> Offer:
        offer = self._by_claim.get(claim)
        if offer is None:
            raise LeaseExpired("the claim has ended")
        if offer.deadline <= now:
            raise _ended_error(State.EXPIRED)
        return offer

    def _end(self, offer: Offer, event: Event) -> Ended:
        self._move(offer, event)
        del self._offers[offer.name], self._by_request[offer.request_id]
        if offer.claim is not None:
            del self._by_claim[offer.claim]
        self._tombstones[offer.name] = (offer.offer_id, offer.state)
        while len(self._tombstones) > MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        return Ended(offer.state, offer.request_id, offer.claim, tuple(offer.block_ids))

    def _move(self, offer: Offer, event: Event) -> None:
        state = MOVES[offer.state].get(event)
        assert state is not None, f"{event.value} in state {offer.state.value}: {offer}"
        offer.state = state


def _same(ours: str, theirs: str) -> bool:
    return hmac.compare_digest(ours.encode(), theirs.encode())


def _ended_error(state: State) -> TransferError:
    if state is State.EXPIRED:
        return LeaseExpired("the lease has expired")
    return HandleRefused(f"the offer has ended: {state.value}")
