"""Fairness, no starvation and conservation of the waiting line, under random work."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from common.admission.fair_queue import FairQueue

MAX_COST, MAX_OUTPUT, SEATS = 100, 50, 4
TENANTS = {"a": 1.0, "b": 1.0, "c": 2.0, "": 0.5}
# How far the counters of two waiting tenants may be apart: what one turn costs, and what those
# that run meanwhile may still be charged with.
SPREAD = (MAX_COST + SEATS * MAX_OUTPUT) / min(TENANTS.values())

tenants = st.sampled_from(sorted(TENANTS))
costs = st.integers(1, MAX_COST)
steps = st.one_of(
    st.tuples(st.just("push"), tenants, costs, st.integers(-2, 2)),
    st.tuples(st.just("pop")),
    st.tuples(st.just("leave"), st.integers(0, 10**6)),
    st.tuples(st.just("finish"), st.integers(0, MAX_OUTPUT)),
)


class Line:
    """A queue in front of some seats, and the books to check it by."""

    def __init__(self):
        self.queue = FairQueue()
        self.waiting = {}  # ticket: (tenant, cost, priority)
        self.running = []
        self.popped = []
        self.ended: Counter[int] = Counter()

    def push(self, tenant, cost, priority=0):
        weight = TENANTS[tenant]
        ticket = self.queue.push(tenant, cost, priority=priority, weight=weight)
        assert ticket not in self.ended and ticket not in self.waiting
        self.waiting[ticket] = (tenant, cost, priority)
        return ticket

    def pop(self):
        if not self.waiting or len(self.running) >= SEATS:
            return
        entry = self.queue.pop()
        assert (entry.tenant, entry.cost, entry.priority) == self.waiting.pop(entry.ticket)
        self.ended[entry.ticket] += 1
        self.popped.append(entry)
        self.running.append(entry)

    def leave(self, number):
        if self.waiting:
            ticket = sorted(self.waiting)[number % len(self.waiting)]
            assert self.queue.remove(ticket) is not None
            assert self.queue.remove(ticket) is None
            del self.waiting[ticket]
            self.ended[ticket] += 1

    def finish(self, num_tokens):
        if self.running:
            self.queue.charge(self.running.pop(0).tenant, num_tokens)

    def check(self):
        assert len(self.queue) == len(self.waiting)
        assert self.queue.num_tokens == sum(cost for _, cost, _ in self.waiting.values())
        assert (self.queue.head() is None) == (not self.waiting)
        assert not self.ended or set(self.ended.values()) == {1}
        assert not self.ended.keys() & self.waiting.keys()
        present = {tenant for tenant, _, _ in self.waiting.values()}
        counters = [self.queue._served[tenant] for tenant in present]
        assert not counters or max(counters) - min(counters) <= SPREAD


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=120))
def test_each_request_leaves_once_and_waiting_tenants_stay_close(plan):
    line = Line()
    for name, *arguments in plan:
        getattr(line, name)(*arguments)
        line.check()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(costs, min_size=60, max_size=60),
    st.lists(costs, min_size=60, max_size=60),
    st.integers(1, 60),
)
def test_two_backlogged_tenants_get_shares_as_their_weights(ones, others, turns):
    """However different their requests are: up to what one request costs."""
    queue = FairQueue()
    for one, other in zip(ones, others, strict=True):
        queue.push("b", one, weight=1.0)
        queue.push("c", other, weight=2.0)
    got: Counter[str] = Counter()
    for _ in range(turns):
        entry = queue.pop()
        got[entry.tenant] += entry.cost
    assert abs(got["b"] / 1.0 - got["c"] / 2.0) <= MAX_COST


@settings(max_examples=40, deadline=None)
@given(
    st.lists(costs, min_size=20, max_size=100),
    st.lists(st.tuples(st.sampled_from("ab"), costs), max_size=200),
    costs,
    st.integers(0, 50),
)
def test_nobody_starves(flood, during, cost, turns_before):
    """A newcomer's request goes before most of what a greedy tenant has sent, and sends on."""
    queue = FairQueue()
    for each in flood:
        queue.push("a", each)
    for _ in range(min(turns_before, len(flood) - 1)):
        queue.pop()
    mine = queue.push("b", cost)
    before, late = 0, iter(during)
    while (entry := queue.pop()).ticket != mine:
        assert entry.tenant == "a"
        before += entry.cost
        if arrived := next(late, None):
            queue.push("a", arrived[1])
    assert before <= MAX_COST


def test_within_a_tenant_priority_then_arrival():
    queue = FairQueue()
    tickets = {p: queue.push("a", 1, priority=p) for p in (0, 5, -3)}
    second = queue.push("a", 1, priority=-3)
    order = [queue.pop().ticket for _ in range(4)]
    assert order == [tickets[-3], second, tickets[0], tickets[5]]


def test_priority_does_not_buy_another_tenants_turn():
    queue = FairQueue()
    for _ in range(10):
        queue.push("greedy", 10, priority=-100)
    queue.push("modest", 10, priority=100)
    first_two = {queue.pop().tenant for _ in range(2)}
    assert first_two == {"greedy", "modest"}


def test_idle_tenants_save_nothing_up():
    queue = FairQueue()
    for _ in range(50):
        queue.push("busy", 10)
        queue.pop()
        queue.charge("busy", 100)
    for _ in range(4):
        queue.push("idle", 10)
        queue.push("busy", 10)
    assert [queue.pop().tenant for _ in range(8)].count("idle") == 4
    turns = []
    for _ in range(6):
        queue.push("idle", 10)
        queue.push("busy", 10)
    turns = [queue.pop().tenant for _ in range(6)]
    assert turns.count("busy") == turns.count("idle") == 3


def test_tokens_before_a_newcomer_are_its_fair_share():
    queue = FairQueue()
    for _ in range(100):
        queue.push("greedy", 10)
    assert queue.tokens_before("greedy") == 1000
    assert queue.tokens_before("modest") == 0
    for _ in range(3):
        queue.push("modest", 10)
    assert queue.tokens_before("modest") == 30 + 30
    assert queue.tokens_before("modest", priority=-1) == 0
    assert queue.tokens_before("greedy") == 1000 + 30
