"""Who owns which KV block: reference counts, prefix hashes, LRU eviction, epochs.

    state      sequence refs   holds   reserved   hash
    free             0           0        no       no      handed out first
    cached           0           0        no       yes     handed out when none is free, LRU first
    used            ≥ 1         any       no       any
    held             0          ≥ 1       no       any     read by a lease, or matched for a load
    reserved         0           0        yes      no      set aside for a load

A block's epoch rises each time it is handed out (`allocate`, `reserve`), that is, whenever its
bytes may begin to change. Plain Python, O(1) per block; knows no tokens, tensors or network.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum


class BlockState(IntEnum):
    FREE = 0
    CACHED = 1
    USED = 2
    HELD = 3
    RESERVED = 4


class BlockPool:
    """Misuse (giving back what was not taken) is our own mistake and fails an assertion."""

    def __init__(self, num_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_blocks = num_blocks
        self._clock = clock
        self._sequence_refs = [0] * num_blocks
        self._hold_refs = [0] * num_blocks
        self._is_reserved = [False] * num_blocks
        self._epochs = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._states = [BlockState.FREE] * num_blocks
        self._owners = [""] * num_blocks  # who took the block last
        self._since = [0.0] * num_blocks  # and when
        self._free = list(
            range(num_blocks - 1, -1, -1)
        )  # a stack: low ids, and runs of them, first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._by_digest: dict[bytes, int] = {}
        self.on_removed: Callable[[bytes], None] | None = None  # told of each evicted digest
        self._counts = [num_blocks, 0, 0, 0, 0]

    def __repr__(self) -> str:
        return f"BlockPool({', '.join(f'{k}={v}' for k, v in self.counts().items())})"

    # --- questions -------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Blocks that can be handed out now."""
        return self._counts[BlockState.FREE] + self._counts[BlockState.CACHED]

    def counts(self) -> dict[str, int]:
        return {state.name.lower(): self._counts[state] for state in BlockState}

    def state(self, block: int) -> BlockState:
        return self._states[block]

    def epochs(self, blocks: Iterable[int]) -> tuple[int, ...]:
        return tuple(self._epochs[block] for block in blocks)

    def match(self, digests: Iterable[bytes]) -> list[int]:
        """The longest run of leading digests that are in the pool. Takes nothing."""
        found: list[int] = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def digests(self) -> tuple[bytes, ...]:
        """Everything that `match` could find."""
        return tuple(self._by_digest)

    def num_cached(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` would leave `available` if somebody took them."""
        return sum(self._states[block] is BlockState.CACHED for block in blocks)

    # --- sequences -------------------------------------------------------------------------------

    def allocate(self, num_blocks: int, owner: str) -> list[int] | None:
        """Hand out empty blocks, one sequence reference each; all or (None) nothing."""
        return self._hand_out(num_blocks, owner, reserved=False)

    def acquire(self, blocks: Sequence[int], owner: str) -> None:
        """One more sequence reference on blocks found by `match`."""
        now = self._clock()
        for block in blocks:
            self._sequence_refs[block] += 1
            self._stamp(block, owner, now)
            self._settle(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one sequence reference per block. A prefix is evicted from its end."""
        for block in reversed(blocks):
            assert self._sequence_refs[block] > 0, f"block {block} has no sequence reference"
            self._sequence_refs[block] -= 1
            self._settle(block)

    def name(self, block: int, digest: bytes) -> bool:
        """Let others find a full block of a sequence by its digest. The first one named stays.

        True if the digest could not be found before.
        """
        assert self._sequence_refs[block] > 0, f"block {block} is not in use"
        is_new = digest not in self._by_digest and self._digests[block] is None
        if is_new:
            self._by_digest[digest] = block
            self._digests[block] = digest
        return is_new

    # --- holds and reservations ------------------------------------------------------------------

    def hold(self, blocks: Sequence[int], owner: str) -> None:
        """Keep the bytes of these blocks, whatever happens to the sequences that use them."""
        now = self._clock()
        for block in blocks:
            assert not self._is_reserved[block], f"block {block} is reserved"
            self._hold_refs[block] += 1
            self._stamp(block, owner, now)
            self._settle(block)

    def reserve(self, num_blocks: int, owner: str) -> list[int] | None:
        """Set empty blocks aside; all or (None) nothing."""
        return self._hand_out(num_blocks, owner, reserved=True)

    def adopt(self, blocks: Sequence[int], owner: str) -> None:
        """Turn one hold or reservation per block into a sequence reference."""
        for block in blocks:
            self._give_back(block)
            self._sequence_refs[block] += 1
            self._stamp(block, owner, self._since[block])
            self._settle(block)

    def keep(self, block: int, digest: bytes) -> bool:
        """Give back a reserved block that has been filled: others find it by its digest from now
        on. True if the digest could not be found before."""
        assert self._is_reserved[block], f"block {block} is not reserved"
        is_new = digest not in self._by_digest
        if is_new:
            self._by_digest[digest] = block
            self._digests[block] = digest
        self.free((block,))
        return is_new

    def free(self, blocks: Sequence[int]) -> None:
        """Give back one hold or reservation per block."""
        for block in reversed(blocks):
            self._give_back(block)
            self._settle(block)

    # --- oversight -------------------------------------------------------------------------------

    def check(self) -> None:
        """The cheap invariant: each block is in exactly one state."""
        assert sum(self._counts) == self.num_blocks, self
        assert len(self._free) == self._counts[BlockState.FREE], self
        assert len(self._cached) == self._counts[BlockState.CACHED], self

    def audit(self) -> None:
        """The full invariant, block by block: O(blocks), for tests and for whoever hunts a leak."""
        self.check()
        free = set(self._free)
        for block, state in enumerate(self._states):
            assert state is self._expected_state(block), (block, state)
            assert (block in free) is (state is BlockState.FREE), block
            assert (block in self._cached) is (state is BlockState.CACHED), block
            digest = self._digests[block]
            assert digest is None or self._by_digest[digest] == block, block
        assert sum(digest is not None for digest in self._digests) == len(self._by_digest)

    def ledger(self) -> list[dict[str, int | float | str]]:
        """Every block that somebody has, with its owner (who took it last) and age in seconds."""
        now = self._clock()
        return [
            {
                "block": block,
                "state": state.name.lower(),
                "owner": self._owners[block],
                "age_s": round(now - self._since[block], 3),
                "sequence_refs": self._sequence_refs[block],
                "holds": self._hold_refs[block],
                "epoch": self._epochs[block],
            }
            for block, state in enumerate(self._states)
            if state >= BlockState.USED
        ]

    # --- insides ---------------------------------------------------------------------------------

    def _hand_out(self, num_blocks: int, owner: str, *, reserved: bool) -> list[int] | None:
        if num_blocks > self.available:
            return None
        now = self._clock()
        taken = []
        for _ in range(num_blocks):
            block = self._free.pop() if self._free else self._evict()
            self._epochs[block] += 1
            if reserved:
                self._is_reserved[block] = True
            else:
                self._sequence_refs[block] = 1
            self._stamp(block, owner, now)
            self._settle(block)
            taken.append(block)
        return taken

    def _evict(self) -> int:
        block = next(iter(self._cached))
        digest = self._digests[block]
        assert digest is not None
        del self._by_digest[digest]
        self._digests[block] = None
        if self.on_removed is not None:
            self.on_removed(digest)
        return block

    def _give_back(self, block: int) -> None:
        if self._is_reserved[block]:
            self._is_reserved[block] = False
        else:
            assert self._hold_refs[block] > 0, f"block {block} is neither held nor reserved"
            self._hold_refs[block] -= 1

    def _stamp(self, block: int, owner: str, now: float) -> None:
        self._owners[block] = owner
        self._since[block] = now

    def _expected_state(self, block: int) -> BlockState:
        if self._sequence_refs[block]:
            return BlockState.USED
        if self._hold_refs[block]:
            return BlockState.HELD
        if self._is_reserved[block]:
            return BlockState.RESERVED
        return BlockState.FREE if self._digests[block] is None else BlockState.CACHED

    def _settle(self, block: int) -> None:
        """Move a block whose counts changed to its new state. (Leaving the free stack is a pop.)"""
        before, after = self._states[block], self._expected_state(block)
        if before is after:
            return
        self._states[block] = after
        self._counts[before] -= 1
        self._counts[after] += 1
        if before is BlockState.CACHED:
            del self._cached[block]
        if after is BlockState.CACHED:
            self._cached[block] = None
        elif after is BlockState.FREE:
            self._free.append(block)
