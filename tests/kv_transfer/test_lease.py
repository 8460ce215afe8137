"""The lease table alone: hand-moved time, no wire. First by example, then as a state machine."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import BadRequest, LeaseExpired, TransferError
from kv_transfer.lease import MOVES, LeaseTable, State

LEASE_S = 10.0


def complete_offer(table, blocks, now=0.0, request_id="r"):
    offer = table.offer(request_id, len(blocks), now)
    table.extend(offer, blocks, [1] * len(blocks), [], [], 5, now)
    return offer


def test_finish_hands_every_block_to_the_caller():
    table = LeaseTable(LEASE_S)
    offer = complete_offer(table, [4, 2, 9])
    table.claim(offer.offer_id, "c", "d", 1.0)
    ended = table.finish("c", 2.0)
    assert (ended.state, ended.block_ids) == (State.RELEASED, (4, 2, 9))
    assert table.expire(100.0) == [] and table.offers() == []


def test_the_lease_starts_with_the_first_block():
    table = LeaseTable(LEASE_S)
    offer = table.offer("r", 2, 0.0)
    assert table.next_deadline() == math.inf
    table.extend(offer, [1], [1], [], [], None, 100.0)
    assert table.next_deadline() == 110.0
    assert table.expire(109.9) == []
    assert [ended.block_ids for ended in table.expire(110.0)] == [(1,)]


def test_prefill_renews_an_unclaimed_offer_but_not_a_claimed_one():
    table = LeaseTable(LEASE_S)
    offer = table.offer("r", 3, 0.0)
    table.extend(offer, [1], [1], [], [], None, 0.0)
    table.extend(offer, [2], [1], [], [], None, 8.0)
    assert offer.deadline == 18.0
    table.claim(offer.offer_id, "c", "d", 9.0)
    table.extend(offer, [3], [1], [], [], 5, 15.0)
    assert offer.deadline == 19.0
    table.renew("c", 18.0)
    assert offer.deadline == 28.0


@pytest.mark.parametrize("verb", ["renew", "finish", "claim"])
def test_a_lease_that_is_over_is_over_before_the_timer_noticed(verb):
    table = LeaseTable(LEASE_S)
    offer = complete_offer(table, [1])
    if verb != "claim":
        table.claim(offer.offer_id, "c", "d", 0.0)
    with pytest.raises(LeaseExpired):
        match verb:
            case "renew":
                table.renew("c", 10.0)
            case "finish":
                table.finish("c", 10.0)
            case _:
                table.claim(offer.offer_id, "c", "d", 10.0)
    assert [ended.block_ids for ended in table.expire(10.0)] == [(1,)]


def test_finish_before_the_last_block_changes_nothing():
    table = LeaseTable(LEASE_S)
    offer = table.offer("r", 2, 0.0)
    table.extend(offer, [1], [1], [], [], None, 0.0)
    table.claim(offer.offer_id, "c", "d", 0.0)
    with pytest.raises(TransferError, match="before all blocks"):
        table.finish("c", 1.0)
    assert offer.state is State.OPEN


def test_one_reader_and_no_second_after_the_end():
    table = LeaseTable(LEASE_S)
    offer = complete_offer(table, [1])
    table.claim(offer.offer_id, "c", "d", 0.0)
    with pytest.raises(TransferError, match="another consumer"):
        table.claim(offer.offer_id, "c2", "d2", 0.0)
    table.finish("c", 1.0)
    with pytest.raises(TransferError, match="released"):
        table.claim(offer.offer_id, "c3", "d", 1.0)
    with pytest.raises(LeaseExpired):
        table.finish("c", 1.0)


def test_a_claim_token_names_one_claim():
    table = LeaseTable(LEASE_S)
    first, second = complete_offer(table, [1]), complete_offer(table, [2], request_id="r2")
    table.claim(first.offer_id, "c", "d", 0.0)
    with pytest.raises(TransferError, match="used once"):
        table.claim(second.offer_id, "c", "d", 0.0)


def test_a_request_has_one_live_offer():
    table = LeaseTable(LEASE_S)
    offer = table.offer("r", 1, 0.0)
    with pytest.raises(BadRequest):
        table.offer("r", 1, 0.0)
    table.abort(offer)
    assert table.abort(offer) is None
    table.offer("r", 1, 0.0)


def test_offer_ids_are_long_and_never_repeat():
    table = LeaseTable(LEASE_S)
    ids = {table.offer(f"r{i}", 1, 0.0).offer_id for i in range(500)}
    assert len(ids) == 500 and all(len(offer_id) == 40 for offer_id in ids)


@pytest.mark.parametrize("guess", ["", "é" * 40, "0" * 40, "x"])
def test_a_guess_is_no_offer(guess):
    table = LeaseTable(LEASE_S)
    complete_offer(table, [1])
    with pytest.raises(TransferError, match="no such offer"):
        table.claim(guess, "c", "d", 0.0)


def test_the_right_name_with_a_wrong_secret_is_no_offer():
    table = LeaseTable(LEASE_S)
    offer = complete_offer(table, [1])
    with pytest.raises(TransferError, match="no such offer"):
        table.claim(offer.name + "0" * 32, "c", "d", 0.0)


def test_what_has_ended_is_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr("kv_transfer.lease.MAX_TOMBSTONES", 3)
    table = LeaseTable(LEASE_S)
    for i in range(10):
        table.abort(complete_offer(table, [1], request_id=f"r{i}"))
    assert len(table._tombstones) == 3


def test_an_illegal_move_is_our_own_mistake():
    table = LeaseTable(LEASE_S)
    offer = complete_offer(table, [1])
    with pytest.raises(AssertionError):
        table.extend(offer, [2], [1], [], [], None, 0.0)
    assert all(MOVES[state] == {} for state in State if state not in (State.OPEN, State.COMPLETE))


class LeaseMachine(RuleBasedStateMachine):
    """Against a model that only counts: what went in, what came out, who may still come out."""

    def __init__(self):
        super().__init__()
        self.table = LeaseTable(LEASE_S)
        self.now = 0.0
        self.next_id = 0
        self.live = {}  # request id: offer
        self.claims = {}  # claim: request id
        self.given: Counter[int] = Counter()
        self.returned: Counter[int] = Counter()

    def fresh(self):
        self.next_id += 1
        return self.next_id

    def ended(self, ended):
        self.returned.update(ended.block_ids)
        del self.live[ended.request_id]
        if ended.claim is not None:
            del self.claims[ended.claim]

    @rule(num_blocks=st.integers(1, 4))
    def offer(self, num_blocks):
        request_id = f"r{self.fresh()}"
        self.live[request_id] = self.table.offer(request_id, num_blocks, self.now)

    @precondition(lambda self: any(o.state is State.OPEN for o in self.live.values()))
    @rule(data=st.data())
    def extend(self, data):
        offer = data.draw(st.sampled_from([o for o in self.live.values() if o.state is State.OPEN]))
        room = offer.num_blocks - len(offer.block_ids)
        blocks = [self.fresh() for _ in range(data.draw(st.integers(0, room)))]
        is_last = len(blocks) == room and data.draw(st.booleans())
        self.given.update(blocks)
        epochs = [1] * len(blocks)
        self.table.extend(offer, blocks, epochs, [], [], 5 if is_last else None, self.now)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def claim(self, data):
        offer = data.draw(st.sampled_from(list(self.live.values())))
        token = f"c{self.fresh()}"
        may = offer.claim is None and offer.deadline > self.now
        try:
            self.table.claim(offer.offer_id, token, "d", self.now)
        except TransferError:
            assert not may
        else:
            assert may
            self.claims[token] = offer.request_id

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), verb=st.sampled_from(["renew", "finish", "cancel"]))
    def read(self, data, verb):
        token = data.draw(st.sampled_from(list(self.claims)))
        offer = self.live[self.claims[token]]
        is_over = offer.deadline <= self.now
        try:
            if verb == "renew":
                self.table.renew(token, self.now)
                assert offer.deadline == self.now + LEASE_S and not is_over
            elif verb == "finish":
                self.ended(self.table.finish(token, self.now))
                assert not is_over and offer.state is State.RELEASED
            else:
                self.ended(self.table.cancel(token))
        except LeaseExpired:
            assert is_over
        except TransferError:
            assert verb == "finish" and offer.first_token is None

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data):
        self.ended(self.table.abort(data.draw(st.sampled_from(list(self.live.values())))))

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.9, 5.1, 10.0, 30.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        due = {o.request_id for o in self.live.values() if o.deadline <= self.now}
        over = self.table.expire(self.now)
        assert {ended.request_id for ended in over} == due
        for ended in over:
            assert ended.state is State.EXPIRED
            self.ended(ended)

    @invariant()
    def every_block_is_held_or_was_handed_back_once(self):
        held = Counter(block for offer in self.table.offers() for block in offer.block_ids)
        assert held + self.returned == self.given

    @invariant()
    def the_table_knows_what_the_model_knows(self):
        assert {offer.request_id for offer in self.table.offers()} == set(self.live)
        assert self.table.num_claims == len(self.claims)
        deadlines = [offer.deadline for offer in self.live.values()]
        assert self.table.next_deadline() == min(deadlines, default=math.inf)

    def teardown(self):
        for offer in list(self.live.values()):
            self.ended(self.table.abort(offer))
        assert self.returned == self.given


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
