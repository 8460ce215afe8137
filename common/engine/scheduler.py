"""Which sequences run in this step, and how many tokens each. Plain Python; computes nothing.

A step serves, under one token budget: running decodes, then the prefill in progress, then whoever
waits, in the order that `turns.py` gives: fair between flows, by priority and arrival within one.
A sequence gets all blocks for its known tokens when it is admitted, so only decodes ask for more;
when none is left the last in that order is preempted and recomputes (while all blocks belong to one
flow: the last by priority and arrival).

Why it cannot deadlock: any sequence alone fits into the pool (`Engine.add` refuses others). The
first in order is never preempted for another one; if it is the only owner of blocks it can only
wait for holds and reservations, which end by themselves (leases expire, loads have deadlines), and
`reserve` refuses new ones until it has what it needs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

from common.engine.block_pool import BlockPool
from common.engine.interface import EngineSettings
from common.engine.prefix import PrefixHasher
from common.engine.sequence import Sequence, Stage
from common.engine.turns import Turns

# Prompt logprobs need logits for each token of a chunk: rows of vocabulary-many floats.
MAX_PROMPT_LOGPROB_ROWS = 128
# How much shorter steps are while flows compete, and for how many steps after.
CONTEST_SHARE = 4
CONTEST_STEPS = 64


class Chunk(NamedTuple):
    """Compute this many more tokens of a sequence; if they are its last it is sampled."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_sampled(self) -> bool:
        return self.num_tokens == self.sequence.num_to_compute


@dataclass(frozen=True, slots=True)
class Plan:
    chunks: list[Chunk]
    grown: list[Sequence]  # sequences whose block table changed
    preempted: list[Sequence]
    is_ahead: bool = False  # after a step whose tokens are not known: one more of each sequence


def _key(sequence: Sequence) -> tuple[int, int]:
    return sequence.key


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class Scheduler:
    def __init__(
        self, pool: BlockPool, hasher: PrefixHasher, block_size: int, settings: EngineSettings
    ) -> None:
        self._pool = pool
        self._hasher = hasher
        self._block_size = block_size
        self._settings = settings
        self._turns = Turns()
        self._order = _key  # in which those that hold blocks keep them; the same for a whole step
        # All sorted by key.
        self.held: list[Sequence] = []
        self.running: list[Sequence] = []
        self.ready: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.num_preemptions = 0
        self._contested_steps = 0  # that are still to be short

    def __len__(self) -> int:
        return len(self.running) + len(self.ready) + len(self.waiting) + len(self.held)

    def sequences(self) -> list[Sequence]:
        return [*self.running, *self.ready, *self.waiting, *self.held]

    # --- in and out ------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; with blocks (adopted) it waits only for a seat."""
        self._enter(sequence)
        if sequence.block_ids:
            sequence.stage = Stage.READY
            insort(self.ready, sequence, key=_key)
        else:
            sequence.stage = Stage.WAITING
            insort(self.waiting, sequence, key=_key)

    def hold(self, sequence: Sequence) -> None:
        """Keep a sequence, with the blocks it has, out of the steps until `unhold`."""
        self._enter(sequence)
        sequence.stage = Stage.HELD
        insort(self.held, sequence, key=_key)

    def unhold(self, sequence: Sequence) -> None:
        self._take_out(sequence)
        self.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, whatever it is doing, and give its blocks back. Idempotent."""
        if sequence.stage is Stage.DONE:
            return
        self._take_out(sequence)
        sequence.stage = Stage.DONE
        self._turns.charge(sequence.flow, sequence.num_made)
        self._pool.release(sequence.forget_blocks())

    def can_reserve(self, num_blocks: int) -> bool:
        """May so many blocks go to a load without starving whoever is here already?"""
        left = self._pool.available - num_blocks - self._headroom()
        if self.waiting:
            left -= self._num_blocks(self.waiting[0].num_tokens)
        return left >= 0

    # --- one step --------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        plan = Plan([], [], [])
        flows = {sequence.flow for queue in (self.running, self.ready) for sequence in queue}
        self._order = _rank if len(flows) == 1 else _key
        budget = self._budget(flows)
        budget -= self._schedule_decodes(plan)
        for sequence in self.running:
            if budget and sequence.num_to_compute > 1:
                budget -= self._run(sequence, budget, plan)
        while budget and len(self.running) < self._settings.max_num_seqs:
            admitted = self._admit(plan)
            if admitted is None:
                break
            budget -= self._run(admitted, budget, plan)
        return plan

    def _budget(self, flows: set[int]) -> int:
        """Tokens of this step. While flows compete, and for a while after, steps are short: whoever
        comes waits for the step that runs, with whosever prompts in it."""
        is_contested = len(flows | {sequence.flow for sequence in self.waiting}) > 1
        self._contested_steps = CONTEST_STEPS if is_contested else max(0, self._contested_steps - 1)
        whole = self._settings.max_num_batched_tokens
        if not self._contested_steps:
            return whole
        return min(whole, max(whole // CONTEST_SHARE, 2 * self._settings.max_num_seqs))

    def ahead(self, sampled: list[Sequence]) -> Plan | None:
        """The step after one that is being computed and samples these; None: what it should be
        depends on how that one ends, or on somebody who waits."""
        if self.waiting or self.ready or self.held:
            return None
        going_on = [s for s in sampled if s.stage is Stage.RUNNING and not s.ends_next]
        num_ending = sum(s.ends_next for s in self.running)
        if not going_on or len(going_on) + num_ending != len(self.running):
            return None
        growing = [s for s in going_on if self._num_blocks(s.num_tokens + 1) > len(s.block_ids)]
        if len(growing) > self._pool.available:
            return None
        for sequence in growing:
            blocks = self._pool.allocate(1, sequence.request_id)
            assert blocks is not None
            sequence.block_ids += blocks
        return Plan([Chunk(s, 1) for s in going_on], growing, [], is_ahead=True)

    def _schedule_decodes(self, plan: Plan) -> int:
        """In order, so that who is preempted for another has not been scheduled yet."""
        num_decodes = 0
        for sequence in sorted(self.running, key=self._order):
            if sequence.num_to_compute != 1 or sequence.stage is not Stage.RUNNING:
                continue
            if self._num_blocks(sequence.num_tokens) > len(sequence.block_ids) and not self._grow(
                sequence, plan
            ):
                continue
            plan.chunks.append(Chunk(sequence, 1))
            num_decodes += 1
        return num_decodes

    def _run(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        if sequence.wants_prompt_logprobs:
            budget = min(budget, MAX_PROMPT_LOGPROB_ROWS)
        num_tokens = min(sequence.num_to_compute, budget)
        plan.chunks.append(Chunk(sequence, num_tokens))
        return num_tokens

    def _grow(self, sequence: Sequence, plan: Plan) -> bool:
        """One more block, if need be from the last in order. False: it does not run now."""
        while (blocks := self._pool.allocate(1, sequence.request_id)) is None:
            victim = max((*self.running, *self.ready), key=self._order)
            if victim is sequence and len(self.running) + len(self.ready) == 1:
                return False  # alone: keep the blocks, wait for holds and reservations to end
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        sequence.block_ids += blocks
        plan.grown.append(sequence)
        return True

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        self._take_out(sequence)
        self._pool.release(sequence.forget_blocks())
        self.add(sequence)
        self.num_preemptions += 1
        plan.preempted.append(sequence)

    def _admit(self, plan: Plan) -> Sequence | None:
        """Seat the first sequence that can have its blocks, or nobody.

        Of those that hold no blocks only the very first is considered: a long prompt at the head
        is not overtaken until it starves. Adopted ones may pass it, to give their blocks back.
        """
        first = self.waiting[0] if self.waiting else None
        if first and (not self.ready or first.key < self.ready[0].key) and self._place(first):
            return self._seat(self.waiting, plan)
        if self.ready and self._complete(self.ready[0], plan):
            return self._seat(self.ready, plan)
        return None

    def _complete(self, sequence: Sequence, plan: Plan) -> bool:
        """Give an adopted sequence the block for its next token, if it lacks one."""
        if self._num_blocks(sequence.num_tokens) <= len(sequence.block_ids):
            return True
        if self.running and not self._pool.available:
            return False  # these are scheduled already; they end, or are preempted in a later step
        return self._grow(sequence, plan)

    def _seat(self, queue: list[Sequence], plan: Plan) -> Sequence:
        sequence = queue.pop(0)
        sequence.stage = Stage.RUNNING
        self._turns.had_its_turn(sequence)
        insort(self.running, sequence, key=_key)
        plan.grown.append(sequence)
        return sequence

    def _place(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks for all its tokens: prefix hits, then empty ones."""
        hits = self._prefix_hits(sequence)
        num_missing = self._num_blocks(sequence.num_tokens) - len(hits)
        num_spare = self._pool.available - self._pool.num_cached(hits)
        if num_spare < num_missing + self._headroom():
            return False
        self._pool.acquire(hits, sequence.request_id)
        missing = self._pool.allocate(num_missing, sequence.request_id)
        assert missing is not None
        sequence.block_ids = hits + missing
        sequence.num_computed = len(hits) * self._block_size
        sequence.num_named = len(hits)
        if sequence.started_at is None:
            sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt)
        return True

    def _prefix_hits(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's start; not its last token, whose logits are needed."""
        if not self._settings.enable_prefix_caching or sequence.wants_prompt_logprobs:
            return []
        num_full = (sequence.num_tokens - 1) // self._block_size
        self._hasher.extend(
            sequence.digests,
            sequence.tokens,
            num_full * self._block_size,
            sequence.request.kv_salt,
        )
        return self._pool.match(sequence.digests[:num_full])

    # --- small things ----------------------------------------------------------------------------

    def _enter(self, sequence: Sequence) -> None:
        """Its place in the order, which it keeps unless one of its flow goes before it."""
        if sequence.stage is not Stage.NEW:
            return
        if self._turns.enter(sequence, self.sequences()):
            for queue in (self.held, self.running, self.ready, self.waiting):
                queue.sort(key=_key)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _headroom(self) -> int:
        """Blocks left alone at admission, so that the next step need not preempt the newcomer."""
        return len(self.running) + len(self.ready)

    def _take_out(self, sequence: Sequence) -> None:
        queue = {
            Stage.HELD: self.held,
            Stage.RUNNING: self.running,
            Stage.READY: self.ready,
            Stage.WAITING: self.waiting,
        }[sequence.stage]
        index = bisect_left(queue, sequence.key, key=_key)
        assert queue[index] is sequence
        del queue[index]
