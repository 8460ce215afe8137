"""The hand-over as a whole, in thousands of simulated schedules (simulate.py says what must hold).

A schedule that fails prints its seed, its trace, and the command that runs it again.
"""

from __future__ import annotations

from collections import Counter

import pytest

from kv_transfer import claim, producer_protocol
from kv_transfer.lease import LeaseTable
from tests.kv_transfer import simulate
from tests.kv_transfer.simulate import RATES, STRIKES, run

NUM_SEEDS = 2500
NUM_PARTS = 5  # so that a failure does not hide those of other seeds


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_whatever_goes_wrong_by_chance(part):
    seen: Counter[str] = Counter()
    for seed in range(part, NUM_SEEDS, NUM_PARTS):
        world = run(seed)
        seen.update(fetch.outcome or "killed" for fetch in world.all_fetches)
    assert min(seen["loaded"], seen["recomputed"]) > 100, seen  # it tests both


@pytest.mark.parametrize("fault", STRIKES)
def test_each_fault_before_each_event(fault):
    """Kill, stop, abort at every state that calm schedules pass through."""
    for seed in (1, 2, 6):
        num_events = run(seed, fault="none").clock.num_events
        for event in range(1, num_events + 1):
            run(seed, fault=fault, event=event)


def test_when_nothing_goes_wrong_every_fetch_loads():
    for seed in range(200):
        world = run(seed, fault="none")
        assert all(fetch.outcome == "loaded" for fetch in world.all_fetches)


@pytest.mark.parametrize("fault", RATES)
def test_every_fault_that_is_drawn_does_happen(fault):
    """Otherwise the simulation would promise more than it tests."""
    for seed in range(500):
        world = simulate.make(seed)
        if fault in world.rates:
            world.run()
            if any(line.endswith(fault) for line in world.clock.trace):
                return
    raise AssertionError(f"in no schedule: {fault}")


def test_the_same_seed_is_the_same_schedule():
    assert run(17).clock.trace == run(17).clock.trace


def test_a_mistake_in_the_machines_is_found_and_told_with_its_seed(monkeypatch):
    """The oracle of the oracle: leases that never end."""
    monkeypatch.setattr(LeaseTable, "expire", lambda self, now: [])
    monkeypatch.setattr(LeaseTable, "next_deadline", lambda self: float("inf"))
    with pytest.raises(AssertionError, match="--seed"):
        for seed in range(200):
            run(seed)


def test_a_flipped_bit_that_nobody_compares_is_found(monkeypatch):
    """What `transcript.py` is for: without it, a bit of a block id makes a wrong answer."""
    for module in (claim, producer_protocol):
        monkeypatch.setattr(module, "digest", lambda *told: b"")
    with pytest.raises(AssertionError, match=r"d\d r\d"):
        for seed in range(3000):
            if "a bit flips in a message" in simulate.make(seed).rates:
                run(seed)


def test_a_broken_connection_costs_nothing_but_another_one():
    """Wherever it breaks, the claim goes on over the next; only the answer to `Finish` may be lost
    with it."""
    num_reopened = 0
    for seed in (1, 2, 6):
        num_events = run(seed, fault="none").clock.num_events
        for event in range(1, num_events + 1):
            world = run(seed, fault="break-link", event=event)
            for fetch in world.all_fetches:
                if fetch.outcome != "loaded":
                    assert "released" in str(fetch.error), f"{seed} {event}: {fetch.error}"
            num_reopened += any("number=1" in line for line in world.clock.trace)
    assert num_reopened > 100
