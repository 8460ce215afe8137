"""Who has which prefix blocks: hash → instances, as bit masks. Plain data; time is a parameter.

Two layers: what instances have said (`add`, `remove`), and what they will have soon because a
request was just sent there (`expect`), which is believed for a few seconds only. Both are bounded;
what does not fit is left out, and then a hit is missed, no more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence

MAX_BLOCKS = 500_000  # over all instances: about 100 MB
MAX_EXPECTED_BLOCKS = 65_536
EXPECT_S = 5.0


class PrefixIndex:
    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._bits: dict[str, int] = {}  # instance id: its bit
        self._holders: dict[int, int] = {}  # hash: bits of those that have it
        self._held: dict[str, set[int]] = {}
        self._expected: dict[int, dict[str, float]] = {}  # hash: until when, by instance
        self._expectations: deque[tuple[float, str, tuple[int, ...]]] = deque()  # oldest first
        self._num_expected = 0  # in the queue
        self.num_blocks = 0
        self.num_ignored = 0  # that did not fit

    def __repr__(self) -> str:
        held = ", ".join(f"{name}={len(blocks)}" for name, blocks in self._held.items())
        return f"PrefixIndex({held}; expected={self._num_expected})"

    # --- what instances say --------------------------------------------------------------------

    def add(self, instance_id: str, hashes: Collection[int]) -> None:
        bit = self._bit_of(instance_id)
        held, holders = self._held[instance_id], self._holders
        for block in hashes:
            if block in held:
                continue
            if self.num_blocks >= self._max_blocks:
                self.num_ignored += 1
                continue
            held.add(block)
            holders[block] = holders.get(block, 0) | bit
            self.num_blocks += 1

    def remove(self, instance_id: str, hashes: Collection[int]) -> None:
        held = self._held.get(instance_id)
        if held is not None:
            gone = held.intersection(hashes)
            held -= gone
            self._clear(self._bits[instance_id], gone)

    def clear(self, instance_id: str) -> None:
        """What it said is not believed any more."""
        if held := self._held.get(instance_id):
            self._clear(self._bits[instance_id], held)
            self._held[instance_id] = set()

    def forget(self, instance_id: str) -> None:
        """Nothing is known of it any more, nor expected."""
        if instance_id not in self._bits:
            return
        self.clear(instance_id)
        del self._bits[instance_id], self._held[instance_id]
        kept = [entry for entry in self._expectations if entry[1] != instance_id]
        for _, _, hashes in (e for e in self._expectations if e[1] == instance_id):
            self._unexpect(instance_id, hashes, math.inf)
        self._expectations = deque(kept)

    # --- what will be there soon ---------------------------------------------------------------

    def expect(self, instance_id: str, hashes: Sequence[int], now: float) -> None:
        """A prompt with these blocks is on its way to `instance_id`."""
        self._bit_of(instance_id)
        until, new = now + EXPECT_S, tuple(hashes[:MAX_EXPECTED_BLOCKS])
        for block in new:
            self._expected.setdefault(block, {})[instance_id] = until
        self._expectations.append((until, instance_id, new))
        self._num_expected += len(new)
        while self._expectations and (
            self._expectations[0][0] <= now or self._num_expected > MAX_EXPECTED_BLOCKS
        ):
            oldest, instance, expired = self._expectations.popleft()
            self._unexpect(instance, expired, oldest)

    def known(self) -> list[str]:
        return list(self._bits)

    # --- the question --------------------------------------------------------------------------

    def leading(self, hashes: Sequence[int], now: float) -> dict[str, int]:
        """How many of the leading blocks each instance has, where any. O(blocks + instances)."""
        names = {bit: name for name, bit in self._bits.items()}
        left = sum(names)  # bits of those that have had every block so far
        counts: dict[str, int] = {}
        for depth, block in enumerate(hashes):
            here = self._holders.get(block, 0) | self._expected_at(block, now)
            dropped, left = left & ~here, left & here
            if dropped and depth:
                counts.update((name, depth) for bit, name in names.items() if bit & dropped)
            if not left:
                return counts
        counts.update((name, len(hashes)) for bit, name in names.items() if bit & left)
        return counts if hashes else {}

    # --- inside --------------------------------------------------------------------------------

    def _bit_of(self, instance_id: str) -> int:
        bit = self._bits.get(instance_id)
        if bit is None:
            used = sum(self._bits.values())
            bit = ~used & (used + 1)  # the lowest one that is free
            self._bits[instance_id] = bit
            self._held[instance_id] = set()
        return bit

    def _clear(self, bit: int, hashes: Collection[int]) -> None:
        for block in hashes:
            rest = self._holders[block] & ~bit
            if rest:
                self._holders[block] = rest
            else:
                del self._holders[block]
        self.num_blocks -= len(hashes)

    def _expected_at(self, block: int, now: float) -> int:
        entry = self._expected.get(block)
        if not entry:
            return 0
        return sum(self._bits[name] for name, until in entry.items() if until > now)

    def _unexpect(self, instance_id: str, hashes: Sequence[int], until: float) -> None:
        """Drop an expectation, but none that is younger."""
        self._num_expected -= len(hashes)
        for block in hashes:
            entry = self._expected.get(block, {})
            if instance_id in entry and entry[instance_id] <= until:
                del entry[instance_id]
                if not entry:
                    del self._expected[block]
