"""One ledger, several processes: a limit is one for all of them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.admission import ledger as module
from common.admission.admission import Admission, AdmissionLimits, Ask, Want
from common.admission.ledger import Ledger
from common.admission.rate_limit import RateLimits, Rates
from common.errors import Overloaded, Unavailable

TAKER = """
import sys
from pathlib import Path
from common.admission.ledger import Ledger
from common.admission.rate_limit import RateLimits, Rates
ledger = Ledger(Path(sys.argv[1]), int(sys.argv[2]), 4)
limits, rates = RateLimits(ledger), Rates(requests=1000)
print("ready", flush=True)
sys.stdin.readline()
taken = sum(not limits.take_if_enough("t", rates, "requests", 1, 5.0) for _ in range(900))
waiting = sum(ledger.add(1, 100) is None for _ in range(80))
print(taken, waiting, flush=True)
sys.stdin.readline()
"""


def line_of(process):
    return process.stdout.readline()


def takers(path, count):
    found = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    assert [line_of(process) for process in found] == ["ready\n"] * count
    return found


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_take_at_once_get_the_limit_and_no_more(tmp_path):
    """Four want 900 of 1000 each, and 80 of 100 places each; the clock stands still."""
    processes = takers(tmp_path / "ledger", 4)
    try:
        for process in processes:
            tell(process)
        got = [tuple(map(int, line_of(process).split())) for process in processes]
        assert [sum(each) for each in zip(*got, strict=True)] == [1000, 100]
        processes[0].kill()
        processes[0].wait()
        parent = Ledger(tmp_path / "ledger", 0, 4)  # clears what the dead one had
        assert parent.add(got[0][1], 100) is None
        assert parent.add(1, 100) == 100
        parent.close()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@settings(max_examples=40, deadline=None)
@given(
    plan=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 20), st.integers(-5, 30)), max_size=60),
    limit=st.integers(1, 60),
)
def test_it_counts_as_the_books_of_one_process_do(tmp_path_factory, plan, limit):
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    ledgers = [Ledger(path, number, 3) for number in range(3)]
    shared, alone = [RateLimits(each) for each in ledgers], RateLimits()
    rates, now = Rates(tokens=limit), 0.0
    for number, pause, amount in plan:
        now += pause
        if amount > 0:
            found = shared[number].take_if_enough("t", rates, "tokens", amount, now)
            assert found == alone.take_if_enough("t", rates, "tokens", amount, now)
        else:
            shared[number].take("t", rates, "tokens", -amount, now)
            alone.take("t", rates, "tokens", -amount, now)
        assert shared[0].read("t", rates, now) == alone.read("t", rates, now)
    for each in ledgers:
        each.close()


def test_more_keys_than_places_are_kept_apart_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLOTS", 64)
    ledger = Ledger(tmp_path / "ledger", 0, 1)
    limits, rates = RateLimits(ledger), Rates(requests=2)
    for key in range(64):
        assert limits.take_if_enough(f"key {key}", rates, "requests", 2, 0.0) == 0.0
    with pytest.raises(Overloaded):
        limits.take_if_enough("one more", rates, "requests", 1, 0.0)
    assert all(limits.take_if_enough(f"key {n}", rates, "requests", 1, 0.0) for n in range(64))
    assert (
        limits.take_if_enough("one more", rates, "requests", 1, 61.0) == 0.0
    )  # all are full again
    ledger.close()


def test_a_holder_that_was_stopped_costs_an_answer_not_a_worker(tmp_path):
    ledger, other = (Ledger(tmp_path / "ledger", number, 2) for number in range(2))
    fcntl.flock(other._fd, fcntl.LOCK_EX)
    with pytest.raises(Unavailable):
        ledger.add(1, 10)
    ledger.less(0)
    fcntl.flock(other._fd, fcntl.LOCK_UN)
    assert ledger.add(1, 10) is None
    for each in (ledger, other):
        each.close()


def test_a_holder_that_dies_holds_nothing(tmp_path):
    (process,) = takers(tmp_path / "ledger", 1)
    script = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script + "; print(1, flush=True); sys.stdin.read()",
            tmp_path / "ledger",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert line_of(holder)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        tell(process)
        assert line_of(process) == "900 80\n"
    finally:
        for each in (process, holder):
            each.kill()
            each.communicate()


class Full:
    """A capacity without room."""

    def has_room(self, want: Want) -> bool:
        return False

    def backlog(self) -> int:
        return 0


def test_waiting_rooms_of_one_ledger_have_one_bound(tmp_path):
    async def main():
        ledgers = [Ledger(tmp_path / "ledger", number, 2) for number in range(2)]
        rooms = [Admission(Full(), AdmissionLimits(max_waiting=3), each) for each in ledgers]
        asks = [Ask("", 10)]
        places = [rooms[number].enter(asks)[0] for number in (0, 1, 1)]
        for room in rooms:
            with pytest.raises(Overloaded, match="3 requests are waiting"):
                room.enter(asks)
        places[0].leave()
        places.append(rooms[1].enter(asks)[0])
        with pytest.raises(Overloaded):
            rooms[0].enter(asks)
        for place in places:
            place.leave()
        assert len(rooms[0].enter(asks * 4)) == 4  # nobody waits: then any fits
        for each in ledgers:
            each.close()

    asyncio.run(main())
