"""The order in which flows take turns: fair between them, by rank within one, nobody starved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from common.engine.turns import MAX_FLOWS, Turns

MAX_COST = 50
FLOWS = (0, 7, 11)
steps = st.one_of(
    st.tuples(st.sampled_from(FLOWS), st.integers(1, MAX_COST), st.integers(-2, 2)),
    st.none(),  # somebody has his turn
)


@dataclass(eq=False)
class One:
    flow: int
    rank: tuple[int, int]
    cost: int
    key: tuple[int, int] = (0, 0)
    had_turn: bool = False


class Queue:
    def __init__(self):
        self.turns = Turns()
        self.waiting: list[One] = []
        self.served: list[One] = []
        self.arrivals = 0

    def add(self, flow, cost=10, priority=0):
        self.arrivals += 1
        one = One(flow, (priority, self.arrivals), cost)
        before = {each.rank: each.key for each in self.waiting}
        is_changed = self.turns.enter(one, self.waiting)
        assert is_changed or before == {each.rank: each.key for each in self.waiting}
        self.waiting.append(one)
        return one

    def serve(self):
        if self.waiting:
            one = min(self.waiting, key=lambda each: each.key)
            self.waiting.remove(one)
            self.turns.had_its_turn(one)
            self.served.append(one)


def names(served):
    return [one.flow for one in served]


@given(st.lists(steps, max_size=120))
@settings(max_examples=200, deadline=None)
def test_keys_are_unique_and_within_a_flow_they_are_in_the_order_of_rank(work):
    queue = Queue()
    for step in work:
        if step is None:
            queue.serve()
        else:
            queue.add(*step)
        assert len({each.key for each in queue.waiting}) == len(queue.waiting)
        for flow in FLOWS:
            mine = [each for each in queue.waiting if each.flow == flow]
            by_key = sorted(mine, key=lambda each: each.key)
            assert by_key == sorted(mine, key=lambda each: each.rank)


@given(st.lists(steps.map(lambda step: step and (5, *step[1:])), max_size=80))
@settings(max_examples=100, deadline=None)
def test_alone_a_flow_has_the_order_of_priority_and_arrival(work):
    queue, reference = Queue(), []
    for step in work:
        if step is not None:
            reference.append(queue.add(*step))
        elif reference:
            expected = min(reference, key=lambda each: each.rank)
            reference.remove(expected)
            queue.serve()
            assert queue.served[-1] is expected


@given(
    st.lists(st.tuples(st.integers(1, MAX_COST), st.integers(-2, 2)), min_size=5, max_size=60),
    st.integers(1, 12),
)
@settings(max_examples=150, deadline=None)
def test_while_two_flows_wait_neither_gets_more_than_the_other(asks, greed):
    """One sends `greed` for each of the other's: as long as both wait they get the same tokens, but
    for what one turn of each costs."""
    queue = Queue()
    got: Counter[int] = Counter()
    for cost, priority in asks:
        queue.add(1, cost, priority)
        for _ in range(greed):
            queue.add(2, cost, -priority)
    while {each.flow for each in queue.waiting} == {1, 2}:
        queue.serve()
        got[queue.served[-1].flow] += queue.served[-1].cost
        assert abs(got[1] - got[2]) <= 2 * MAX_COST


@given(st.lists(steps, max_size=80), st.integers(1, MAX_COST))
@settings(max_examples=150, deadline=None)
def test_who_comes_anew_is_before_all_that_have_not_had_their_turn(work, cost):
    queue = Queue()
    for step in work:
        if step is None:
            queue.serve()
        else:
            queue.add(*step)
    fresh = queue.add(99, cost)
    ahead = [each for each in queue.waiting if each.key < fresh.key]
    # only those that are where the engine is, one or none of each flow
    assert len({each.flow for each in ahead}) == len(ahead) <= len(FLOWS)


def test_nobody_is_starved_by_others_that_keep_coming():
    queue = Queue()
    old = queue.add(1, 50)
    queue.add(1, 50)
    last = queue.add(1, 50, priority=-1)
    for number in range(100):
        queue.add(2 + number % 5, 10, priority=-9)
        queue.serve()
    assert old in queue.served and last in queue.served


def test_priority_buys_nobody_elses_turn():
    queue = Queue()
    for _ in range(4):
        queue.add(1, priority=5)
    for _ in range(4):
        queue.add(2, priority=-100)
    for _ in range(8):
        queue.serve()
    assert names(queue.served) == [1, 2, 1, 2, 1, 2, 1, 2]


def test_an_idle_flow_has_saved_nothing_up():
    queue = Queue()
    for _ in range(20):
        queue.add(1)
        queue.serve()
    for _ in range(4):
        queue.add(1)
        queue.add(2)
    for _ in range(8):
        queue.serve()
    assert Counter(names(queue.served)[20:26]) == Counter({1: 3, 2: 3})


def test_long_answers_are_paid_for():
    queue = Queue()
    for flow in (1, 2):
        queue.add(flow)
    for _ in range(2):
        queue.serve()
    queue.turns.charge(1, 30)  # its answer was long
    for _ in range(4):
        queue.add(1)
        queue.add(2)
    for _ in range(6):
        queue.serve()
    assert names(queue.served)[2:5] == [2, 2, 2]


def test_what_is_remembered_is_bounded():
    queue = Queue()
    for flow in range(3 * MAX_FLOWS):
        queue.add(flow, 1)
        queue.serve()
        queue.add(flow, 1)
        queue.serve()
    assert len(queue.turns._flows) <= MAX_FLOWS + 1
