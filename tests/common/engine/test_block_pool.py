"""The pool against a naive model that keeps one record per block and scans them all."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from common.engine.block_pool import BlockPool, BlockState
from tests.common.engine.standin_model import must

NUM_BLOCKS = 6


def pool_of(num_blocks: int = NUM_BLOCKS) -> BlockPool:
    return BlockPool(num_blocks, clock=lambda: 0.0)


def digest(i: int) -> bytes:
    return bytes([i])


class PoolMachine(RuleBasedStateMachine):
    """Claims (sequence references, holds, reservations) are given back once each."""

    used = Bundle("used")
    held = Bundle("held")
    reserved = Bundle("reserved")

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool_of()
        self.sequences = [0] * NUM_BLOCKS
        self.holds = [0] * NUM_BLOCKS
        self.set_aside = [False] * NUM_BLOCKS
        self.names: list[int | None] = [None] * NUM_BLOCKS
        self.epochs = [0] * NUM_BLOCKS
        self.idle_since = [0] * NUM_BLOCKS  # order in which blocks lost their last owner
        self.now = 0

    def owned(self, block: int) -> bool:
        return bool(self.sequences[block] or self.holds[block] or self.set_aside[block])

    def note_idle(self, block: int) -> None:
        self.now += 1
        if not self.owned(block):
            self.idle_since[block] = self.now

    def expect_hand_out(self, count: int, taken: list[int] | None) -> list[int]:
        idle = [b for b in range(NUM_BLOCKS) if not self.owned(b)]
        if count > len(idle):
            assert taken is None
            return []
        assert taken is not None
        assert len(set(taken)) == count
        named = sorted(
            (b for b in idle if self.names[b] is not None), key=self.idle_since.__getitem__
        )
        num_unnamed = len(idle) - len(named)
        evicted = [b for b in taken if self.names[b] is not None]
        assert evicted == named[: max(0, count - num_unnamed)], "free first, then the LRU"
        for block in taken:
            self.names[block] = None
            self.epochs[block] += 1
        return taken

    @rule(target=used, count=st.integers(0, NUM_BLOCKS))
    def allocate(self, count):
        taken = self.expect_hand_out(count, self.pool.allocate(count, "s"))
        for block in taken:
            self.sequences[block] += 1
        return multiple(*taken)

    @rule(target=reserved, count=st.integers(0, NUM_BLOCKS))
    def reserve(self, count):
        taken = self.expect_hand_out(count, self.pool.reserve(count, "r"))
        for block in taken:
            self.set_aside[block] = True
        return multiple(*taken)

    @rule(target=used, names=st.lists(st.integers(0, 4), unique=True))
    def match_and_acquire(self, names):
        found = self.pool.match([digest(name) for name in names])
        assert [self.names[block] for block in found] == names[: len(found)]
        if len(found) < len(names):
            assert names[len(found)] not in self.names
        self.pool.acquire(found, "m")
        for block in found:
            self.sequences[block] += 1
        return multiple(*found)

    @rule(target=held, names=st.lists(st.integers(0, 4), unique=True))
    def match_and_hold(self, names):
        found = self.pool.match([digest(name) for name in names])
        self.pool.hold(found, "h")
        for block in found:
            self.holds[block] += 1
        return multiple(*found)

    @rule(target=held, block=used)
    def hold_used(self, block):
        if not self.sequences[block]:
            return multiple()
        self.pool.hold([block], "h")
        self.holds[block] += 1
        return block

    @rule(block=consumes(used))
    def release(self, block):
        self.pool.release([block])
        self.sequences[block] -= 1
        self.note_idle(block)

    @rule(block=consumes(held))
    def free_hold(self, block):
        self.pool.free([block])
        self.holds[block] -= 1
        self.note_idle(block)

    @rule(block=consumes(reserved))
    def free_reservation(self, block):
        self.pool.free([block])
        self.set_aside[block] = False
        self.note_idle(block)

    @rule(target=used, block=consumes(held))
    def adopt_held(self, block):
        self.pool.adopt([block], "a")
        self.holds[block] -= 1
        self.sequences[block] += 1
        return block

    @rule(target=used, block=consumes(reserved))
    def adopt_reserved(self, block):
        self.pool.adopt([block], "a")
        self.set_aside[block] = False
        self.sequences[block] += 1
        return block

    @rule(block=used, name=st.integers(0, 4))
    def name(self, block, name):
        if not self.sequences[block]:
            return
        self.pool.name(block, digest(name))
        if name not in self.names and self.names[block] is None:
            self.names[block] = name

    @invariant()
    def agrees(self):
        self.pool.audit()
        assert self.pool.epochs(range(NUM_BLOCKS)) == tuple(self.epochs)
        assert self.pool.available == sum(not self.owned(b) for b in range(NUM_BLOCKS))
        for block in range(NUM_BLOCKS):
            if self.sequences[block]:
                expected = BlockState.USED
            elif self.holds[block]:
                expected = BlockState.HELD
            elif self.set_aside[block]:
                expected = BlockState.RESERVED
            else:
                expected = BlockState.FREE if self.names[block] is None else BlockState.CACHED
            assert self.pool.state(block) is expected
        assert sum(self.pool.counts().values()) == NUM_BLOCKS
        assert len(self.pool.ledger()) == NUM_BLOCKS - self.pool.available


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_the_end_of_a_prefix_is_evicted_before_its_start():
    pool = pool_of(3)
    blocks = must(pool.allocate(3, "a"))
    for i, block in enumerate(blocks):
        pool.name(block, digest(i))
    pool.release(blocks)
    assert pool.allocate(1, "b") == [blocks[2]]
    assert pool.match([digest(0), digest(1), digest(2)]) == blocks[:2]


def test_a_prefix_hit_keeps_the_epoch_and_a_new_owner_raises_it():
    pool = pool_of(1)
    (block,) = must(pool.allocate(1, "a"))
    pool.name(block, digest(0))
    pool.release([block])
    before = pool.epochs([block])
    pool.acquire([block], "b")
    pool.release([block])
    assert pool.epochs([block]) == before
    pool.reserve(1, "c")
    assert pool.epochs([block]) > before


def test_the_ledger_names_owner_and_age():
    now = [10.0]
    pool = BlockPool(2, clock=lambda: now[0])
    (block,) = must(pool.allocate(1, "request-1"))
    pool.hold([block], "lease-1")
    now[0] = 12.5
    (entry,) = pool.ledger()
    assert entry == {
        "block": block,
        "state": "used",
        "owner": "lease-1",
        "age_s": 2.5,
        "sequence_refs": 1,
        "holds": 1,
        "epoch": 1,
    }


@pytest.mark.parametrize("verb", ["release", "free"])
def test_giving_back_what_was_not_taken_is_our_mistake(verb):
    with pytest.raises(AssertionError):
        getattr(pool_of(), verb)([0])
