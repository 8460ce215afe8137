"""The scheduler alone: plans are carried out by pretending, without a model."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.engine.block_pool import BlockPool
from common.engine.interface import EngineSettings
from common.engine.prefix import PrefixHasher
from common.engine.scheduler import CONTEST_STEPS, Plan, Scheduler
from common.engine.sequence import Sequence, Stage
from tests.common.engine.standin_model import make_request, must

BLOCK = 4


class World:
    """A scheduler and what the engine would do with its plans."""

    def __init__(self, num_blocks=16, max_num_seqs=4, budget=8, caching=False):
        self.pool = BlockPool(num_blocks, clock=lambda: 0.0)
        limits = EngineSettings(
            max_model_len=num_blocks * BLOCK,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
        )
        self.limits = limits
        self.scheduler = Scheduler(self.pool, PrefixHasher("m", BLOCK), BLOCK, limits)
        self.arrivals = 0
        self.finished: list[str] = []

    def add(self, name, num_prompt=4, max_tokens=4, priority=0, prompt=None, flow=0, **sampling):
        self.arrivals += 1
        prompt = prompt or [self.arrivals] * num_prompt
        made = make_request(name, prompt, max_tokens, priority=priority, **sampling)
        request = msgspec.structs.replace(made, flow=flow)
        sequence = Sequence(request, self.arrivals, frozenset())
        self.scheduler.add(sequence)
        return sequence

    def adopt(self, name, num_prompt, max_tokens, blocks, priority=0, flow=0):
        self.arrivals += 1
        prompt = [1] * num_prompt
        made = make_request(name, prompt, max_tokens, outputs=(0,), priority=priority)
        request = msgspec.structs.replace(made, flow=flow)
        sequence = Sequence(request, self.arrivals, frozenset())
        self.pool.adopt(blocks, name)
        sequence.block_ids, sequence.num_computed = list(blocks), num_prompt
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.check(plan)
        for sequence, num_tokens in plan.chunks:
            sequence.num_computed += num_tokens
            if sequence.num_to_compute == 0:
                sequence.append(0)
                if sequence.finish_reason():
                    self.scheduler.remove(sequence)
                    self.finished.append(sequence.request_id)
        return plan

    def check(self, plan: Plan) -> None:
        """What holds for every plan."""
        self.pool.audit()
        names = [sequence.request_id for sequence, _ in plan.chunks]
        assert len(set(names)) == len(names)
        assert len(self.scheduler.running) <= self.limits.max_num_seqs
        assert sum(count for _, count in plan.chunks) <= self.limits.max_num_batched_tokens
        for sequence, count in plan.chunks:
            assert sequence.stage is Stage.RUNNING
            assert 0 < count <= sequence.num_to_compute
            assert len(sequence.block_ids) * BLOCK >= sequence.num_computed + count
        owned = [b for s in self.scheduler.sequences() for b in s.block_ids]
        assert len(set(owned)) == self.pool.counts()["used"]
        if not self.limits.enable_prefix_caching:
            assert len(set(owned)) == len(owned), "no block belongs to two sequences"


def chunks(plan):
    return {sequence.request_id: count for sequence, count in plan.chunks}


def test_a_long_prompt_is_computed_in_chunks_of_the_budget():
    world = World(budget=8)
    world.add("a", num_prompt=20, max_tokens=2)
    assert [chunks(world.step()) for _ in range(4)] == [{"a": 8}, {"a": 8}, {"a": 4}, {"a": 1}]


def test_decodes_go_first_and_prefill_takes_the_rest():
    world = World(budget=8)
    world.add("a", num_prompt=4, max_tokens=9)
    world.step()
    world.add("b", num_prompt=20, max_tokens=2)
    assert chunks(world.step()) == {"a": 1, "b": 7}


def test_priority_then_first_come():
    world = World(max_num_seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 0), ("d", 1)):
        world.add(name, max_tokens=1, priority=priority)
    for _ in range(4):
        world.step()
    assert world.finished == ["b", "c", "a", "d"]


def test_steps_are_short_while_flows_compete_and_for_a_while_after():
    world = World(num_blocks=2000, max_num_seqs=4, budget=64)

    def tokens():
        return sum(count for _, count in world.step().chunks)

    world.add("guest", num_prompt=8, max_tokens=1, flow=2)
    world.add("crowd", num_prompt=4000, max_tokens=1, flow=1)
    for _ in range(CONTEST_STEPS):
        assert tokens() == 16
    assert tokens() == 64, "alone for long enough: all of the budget"
    world.add("more", num_prompt=8, max_tokens=1, flow=1)
    assert tokens() == 64, "its own prompts are no competition"


def test_flows_take_turns_whatever_their_priority():
    world = World(max_num_seqs=1)
    for number in range(6):
        world.add(f"crowd{number}", max_tokens=1, priority=-9, flow=1)
    world.step()
    world.add("guest", max_tokens=1, flow=2)
    world.step()
    world.step()
    assert "guest" in world.finished


def test_priority_saves_nobody_from_anothers_preemption():
    """Blocks run out: the last to have come goes, whatever it says of itself."""
    world = World(num_blocks=6, max_num_seqs=2, budget=12)
    world.add("first", num_prompt=8, max_tokens=12, flow=1)
    world.step()
    world.add("second", num_prompt=8, max_tokens=12, priority=-9, flow=2)
    preempted: list[str] = []
    while len(world.scheduler):
        preempted += [sequence.request_id for sequence in world.step().preempted]
    assert set(preempted) == {"second"}


def test_the_head_of_the_queue_is_not_overtaken():
    world = World(num_blocks=8)
    world.add("a", num_prompt=16, max_tokens=8)
    world.step()
    world.step()
    world.add("long", num_prompt=20, max_tokens=1)
    world.add("short", num_prompt=4, max_tokens=1)
    while world.scheduler.running and world.scheduler.running[0].request_id == "a":
        plan = world.step()
        assert set(chunks(plan)) == {"a"}
    world.step()
    assert world.scheduler.running[0].request_id == "long"


def test_the_last_in_order_is_preempted_and_the_last_preempted_comes_back_first():
    world = World(num_blocks=9, budget=12)
    for name in ("a", "b", "c"):
        world.add(name, num_prompt=4, max_tokens=20)
    order: list[str] = []
    running: list[str] = []
    while len(world.finished) < 3:
        order += [f"-{s.request_id}" for s in world.step().preempted]
        now = [s.request_id for s in world.scheduler.running]
        if order:
            order += [f"+{name}" for name in now if name not in running]
        running = now
    # c goes first, then b; b comes back before c, and is never preempted for it
    assert order[:2] == ["-c", "-b"]
    assert order[2:4] == ["+b", "+c"]
    assert world.finished == ["a", "b", "c"]
    assert world.pool.available == 9


def test_prefix_hits_are_shared_and_the_last_token_is_always_computed():
    world = World(caching=True, budget=16)
    first = world.add("a", prompt=[1, 2, 3, 4, 5, 6, 7, 8], max_tokens=3)
    world.step()
    names = PrefixHasher("m", BLOCK).full_blocks(range(1, 9), "")
    for block, name in zip(first.block_ids, names, strict=True):
        world.pool.name(block, name)
    second = world.add("b", prompt=[1, 2, 3, 4, 5, 6, 7, 8], max_tokens=3)
    assert chunks(world.step())["b"] == 4
    assert second.block_ids[0] == first.block_ids[0]
    assert second.block_ids[1] != first.block_ids[1], "a shared block is never written"
    assert second.num_cached_tokens == 4


def test_prompt_logprobs_use_no_prefix_hits_and_small_chunks():
    world = World(caching=True, budget=1000, num_blocks=100)
    first = world.add("a", num_prompt=8, max_tokens=2)
    world.step()
    world.pool.name(first.block_ids[0], PrefixHasher("m", BLOCK).full_blocks([1] * 4, "")[0])
    world.add("b", prompt=[1] * 300, max_tokens=1, prompt_logprobs=0)
    sizes = [chunks(world.step()).get("b") for _ in range(4)]
    assert sizes == [128, 128, 44, None]


def test_reservations_leave_room_for_who_waits():
    world = World(num_blocks=8)
    world.add("a", num_prompt=16, max_tokens=8)
    world.step()
    world.add("b", num_prompt=20, max_tokens=1)
    world.step()
    assert world.pool.available == 4
    assert not world.scheduler.can_reserve(1), "b needs 5 of the 4 free blocks"


def test_alone_and_out_of_blocks_it_waits_for_holds_to_end():
    world = World(num_blocks=4)
    world.add("a", num_prompt=4, max_tokens=9)
    loan = must(world.pool.reserve(3, "load"))
    assert chunks(world.step()) == {"a": 4}
    plan = world.step()
    assert not plan.chunks
    assert not plan.preempted
    world.pool.free(loan)
    assert chunks(world.step()) == {"a": 1}


def test_an_adopted_sequence_waits_for_a_seat_with_its_blocks():
    world = World(max_num_seqs=1)
    world.add("a", max_tokens=2)
    world.step()
    adopted = world.adopt("d", 8, 3, world.pool.reserve(2, "load"))
    assert chunks(world.step()) == {"a": 1}
    assert adopted.stage is Stage.READY
    assert chunks(world.step()) == {"d": 1}


@pytest.mark.parametrize(("priority", "victim"), [(1, "d"), (-1, "b")])
def test_who_waits_for_a_seat_with_blocks_is_preempted_in_the_same_order(priority, victim):
    world = World(num_blocks=6, max_num_seqs=2, budget=12)
    world.add("a", num_prompt=4, max_tokens=12)
    world.add("b", num_prompt=8, max_tokens=3)
    world.step()
    world.adopt("d", 4, 9, must(world.pool.reserve(1, "load")), priority)
    loan = must(world.pool.reserve(world.pool.available, "load"))
    plan = world.step()
    assert plan.preempted[0].request_id == victim
    world.pool.free(loan)
    while len(world.scheduler):
        assert world.step().chunks
    assert sorted(world.finished) == ["a", "b", "d"]


def test_a_seat_for_an_adopted_sequence_costs_no_scheduled_one_its_blocks():
    world = World(num_blocks=4, max_num_seqs=2)
    world.add("a", num_prompt=5, max_tokens=8)
    world.step()
    adopted = world.adopt("d", 8, 4, must(world.pool.reserve(2, "load")), priority=-1)
    plan = world.step()
    assert chunks(plan) == {"a": 1}
    assert adopted.stage is Stage.READY
    while len(world.scheduler):
        assert world.step().chunks
    assert sorted(world.finished) == ["a", "d"]


def test_removing_twice_gives_blocks_back_once():
    world = World()
    sequence = world.add("a")
    world.step()
    for _ in range(2):
        world.scheduler.remove(sequence)
    assert world.pool.available == 16
    assert len(world.scheduler) == 0


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(3, 12),
    max_num_seqs=st.integers(1, 5),
    spare_budget=st.integers(0, 12),
    caching=st.booleans(),
    flows=st.sampled_from([(0,), (1, 2), (1, 2, 2, 2, 3)]),
)
def test_random_workloads_always_finish(
    seed, num_blocks, max_num_seqs, spare_budget, caching, flows
):
    """Adds, aborts, loads that come and go, adoptions, on a pool that holds one sequence and little
    more. In the end everything has run, and the pool is at rest."""
    rng = random.Random(seed)
    world = World(num_blocks, max_num_seqs, max_num_seqs + spare_budget, caching)
    longest = num_blocks * BLOCK
    expected: set[str] = set()
    loads: list[tuple[int, list[int]]] = []
    for i in range(60):
        name = f"r{i}"
        num_prompt = rng.randint(1, longest - 1)
        max_tokens = rng.randint(1, min(12, longest - num_prompt))
        action = rng.random()
        if action < 0.3:
            priority, flow = rng.choice([0, 0, 1]), rng.choice(flows)
            world.add(name, num_prompt, max_tokens, priority=priority, flow=flow)
            expected.add(name)
        elif action < 0.5 and max_tokens > 1:
            need = -(-num_prompt // BLOCK)
            if world.scheduler.can_reserve(need) and (got := world.pool.reserve(need, name)):
                loads.append((num_prompt, got))
        elif action < 0.65 and loads:
            num_prompt, blocks = loads.pop(rng.randrange(len(loads)))
            if rng.random() < 0.5:
                world.pool.free(blocks)
            else:
                max_tokens = rng.randint(2, longest - num_prompt + 1)
                priority, flow = rng.choice([0, 0, -1]), rng.choice(flows)
                world.adopt(name, num_prompt, max_tokens, blocks, priority, flow)
                expected.add(name)
        elif action < 0.7 and len(world.scheduler):
            victim = rng.choice(world.scheduler.sequences())
            world.scheduler.remove(victim)
            expected.discard(victim.request_id)
        world.step()
    for _, blocks in loads:
        world.pool.free(blocks)
    while len(world.scheduler):
        assert world.step().chunks, "work, nothing on loan, and nobody runs: a deadlock"
    assert sorted(world.finished) == sorted(expected)
    assert world.pool.available == num_blocks
    assert world.pool.counts()["used"] == 0


def test_a_stream_of_loads_cannot_starve_a_waiting_sequence():
    world = World(num_blocks=6)
    loans = [must(world.pool.reserve(2, "load")) for _ in range(3)]
    world.add("a", num_prompt=20, max_tokens=2)
    for turn in range(10):
        world.step()
        if world.finished:
            break
        if loans:
            world.pool.free(loans.pop())
        if world.scheduler.can_reserve(2):
            loans.append(must(world.pool.reserve(2, f"load-{turn}")))
    assert world.finished == ["a"]


def test_a_stuck_queue_entry_costs_no_second_hash():
    """A blocked head is looked at in every step; its digests are computed once."""
    world = World(num_blocks=8, caching=True, budget=32)
    world.add("a", num_prompt=24, max_tokens=4)
    world.step()
    blocked = world.add("b", num_prompt=20, max_tokens=1)
    world.step()
    before = list(blocked.digests)
    world.step()
    assert len(before) == 4
    assert all(one is other for one, other in zip(before, blocked.digests, strict=True))


@pytest.mark.parametrize("num_prompt", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_blocks_match_tokens_at_the_borders(num_prompt):
    world = World()
    sequence = world.add("a", num_prompt=num_prompt, max_tokens=6)
    while len(world.scheduler):
        needed = -(-sequence.num_tokens // BLOCK)
        plan = world.scheduler.schedule()
        assert len(sequence.block_ids) == needed
        assert [chunk.is_sampled for chunk in plan.chunks] == [True]
        sequence.num_computed = sequence.num_tokens
        sequence.append(0)
        if sequence.finish_reason():
            world.scheduler.remove(sequence)
