"""The waiting room with seats that the test gives and takes; the event loop's own clock."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import pytest

from common.admission.admission import Admission, AdmissionLimits, Ask, Stage
from common.errors import Overloaded, QueueTimeout, TtftTooLong, Unavailable


class Seats:
    def __init__(self, count, waiting_tokens=0):
        self.count = count
        self.waiting_tokens = waiting_tokens

    def has_room(self, want):
        return want.num_running < self.count

    def backlog(self):
        return self.waiting_tokens


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


def room_of(seats, **limits):
    room: Any = Admission(Seats(seats), AdmissionLimits(**limits))
    room.seen = Counter()
    room.observe = lambda outcome, wait_s: room.seen.update([outcome])
    return room


def test_everybody_comes_in_at_once_while_there_are_seats():
    async def scenario():
        room = room_of(3)
        places = room.enter([Ask("a", 5)] * 3)
        for place in places:
            await place.turn()
        assert room.num_running == 3
        (waiting,) = room.enter([Ask("a", 5)])
        assert (room.num_waiting, room.num_waiting_tokens) == (1, 5)
        turn = asyncio.create_task(waiting.turn())
        places[0].leave()
        places[0].leave()
        await turn
        assert (room.num_running, room.num_waiting) == (3, 0)
        stages = [waiting.stage]
        waiting.came(1)
        assert [*stages, waiting.stage] == [Stage.PREFILL, Stage.DECODE]

    run(scenario())


def test_a_full_room_takes_a_request_whole_or_not_at_all():
    async def scenario():
        room = room_of(0, max_waiting=3)
        room.enter([Ask("a", 1)] * 2)
        with pytest.raises(Overloaded) as refused:
            room.enter([Ask("a", 1)] * 2)
        assert 1.0 <= refused.value.retry_after_s <= 60.0
        assert room.num_waiting == 2
        room.enter([Ask("a", 1)])
        with pytest.raises(Overloaded):
            room.enter([Ask("b", 1)])
        big = room_of(0, max_waiting=3)
        assert len(big.enter([Ask("a", 1)] * 10)) == 10  # else it never could

    run(scenario())


def test_waiting_ends():
    async def scenario():
        room = room_of(0, max_wait_s=0.2)
        (place,) = room.enter([Ask("a", 1)])
        with pytest.raises(QueueTimeout):
            await place.turn()
        (late,) = room.enter([Ask("a", 1)])
        turn = asyncio.create_task(late.turn())
        await asyncio.sleep(0)
        room.close("the end")
        with pytest.raises(Unavailable, match="the end"):
            await turn
        with pytest.raises(Unavailable):
            room.enter([Ask("a", 1)])
        assert room.seen == Counter(timeout=1, closed=1)

    run(scenario())


def test_a_greedy_tenant_does_not_hold_up_another():
    """Two hundred requests wait; another's single one comes in after at most one of them."""

    async def scenario():
        room = room_of(4)
        order = []

        async def work(tenant):
            (place,) = room.enter([Ask(tenant, 100)])
            try:
                await place.turn()
                order.append(tenant)
                await asyncio.sleep(0)
                place.came(50)
                await asyncio.sleep(0)
            finally:
                place.leave()

        flood = [asyncio.create_task(work("greedy")) for _ in range(200)]
        for _ in range(10_000):
            if len(order) < 40:
                await asyncio.sleep(0)
        before = len(order)
        await work("modest")
        assert order.index("modest") - before <= 8  # the seats, and those called meanwhile
        await asyncio.gather(*flood)
        assert Counter(order) == Counter(greedy=200, modest=1)
        assert (room.num_running, room.num_waiting, room.num_waiting_tokens) == (0, 0, 0)

    run(scenario())


def test_who_runs_nothing_gets_in_beside_a_crowd_and_only_once():
    """The capacity keeps a little for those: engines take turns, so a crowd is not before them."""

    class OneMore(Seats):
        def has_room(self, want):
            return want.num_running < self.count + want.is_only

    async def scenario():
        room = Admission(OneMore(2))
        crowd = room.enter([Ask("crowd", 10)] * 5)
        for place in crowd[:2]:
            await place.turn()
        guest, second = room.enter([Ask("guest", 10)] * 2)
        await asyncio.wait_for(guest.turn(), 5)
        assert (room.num_running, room.num_waiting) == (3, 4)
        late = asyncio.create_task(second.turn())
        await asyncio.sleep(0.2)
        assert not late.done(), "its tenant runs something now"
        for place in (*crowd, guest, second):
            place.leave()
        late.cancel()
        assert (room.num_running, room.num_waiting) == (0, 0)

    run(scenario())


@pytest.mark.parametrize("seed", range(4))
def test_each_place_leaves_the_room_in_exactly_one_way(seed):
    async def scenario():
        draw = random.Random(seed)
        room = room_of(3, max_waiting=30, max_wait_s=0.3)
        ends: Counter[str] = Counter()

        async def run_one(place):
            try:
                await place.turn()
                place.came(1)
                await asyncio.sleep(draw.random() * 0.02)
            except QueueTimeout:
                ends["late"] += 1
            finally:
                place.leave()

        async def ask():
            try:
                places = room.enter([Ask(draw.choice("abc"), draw.randint(1, 50))] * 2)
            except Overloaded:
                ends["refused"] += 1
                return
            ends["entered"] += len(places)
            try:
                await asyncio.gather(*map(run_one, places))
            finally:
                for place in places:
                    place.leave()

        async def client():
            task = asyncio.create_task(ask())
            await asyncio.sleep(draw.random() * 0.1)
            if draw.random() < 0.3:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        await asyncio.gather(*(client() for _ in range(60)))
        await asyncio.sleep(0)
        assert (room.num_running, room.num_waiting, room.num_waiting_tokens) == (0, 0, 0)
        assert sum(room.seen.values()) == ends["entered"]
        assert room.seen["timeout"] == ends["late"]
        assert room._num_begun == 0

    run(scenario())


def test_a_target_refuses_what_would_miss_it_and_says_when_to_come_back():
    async def scenario():
        seats = Seats(100)
        room = Admission(seats, AdmissionLimits(slo_ttft_s=1.0))
        for tokens in (100, 200, 300, 400, 500):  # a thousand tokens a second
            room._prompts.observe(tokens, tokens / 1000)
        seats.waiting_tokens = 500
        (place,) = room.enter([Ask("a", 100)])
        place.leave()
        seats.waiting_tokens = 4900
        with pytest.raises(TtftTooLong) as refused:
            room.enter([Ask("a", 100)])
        assert refused.value.retry_after_s == pytest.approx(4.0, abs=0.1)
        seats.waiting_tokens = 2900
        with pytest.raises(TtftTooLong) as refused:
            room.enter([Ask("a", 100)])
        assert refused.value.retry_after_s == pytest.approx(2.0, abs=0.1)
        seats.waiting_tokens = 0
        room.enter([Ask("a", 10_000)])[0].leave()  # hopeless, but nothing is in its way

    run(scenario())
