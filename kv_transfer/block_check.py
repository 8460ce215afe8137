"""Compares blocks with their checksums as they land, beside the copy of those that follow.

What has just been written is still in the processor's cache, and the copy does not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from common.errors import CorruptBlock
from kv_transfer.region import KVRegion


class ChecksumMismatch(CorruptBlock):
    """What arrived is not what was sent."""


class BlockCheck:
    """Of one copy."""

    def __init__(
        self,
        region: KVRegion,
        local: Sequence[int],
        checksums: Sequence[int],
        thread: ThreadPoolExecutor,
    ) -> None:
        """`checksums`: one for each of the blocks `local`, or none."""
        self._region = region
        self._local = local
        self._checksums = checksums
        self._thread = thread
        self._num_landed = 0
        self._running: list[Future[None]] = []

    def landed(self, num_blocks: int) -> None:
        """The first `num_blocks` are here; 0: they are all written anew."""
        if not num_blocks:
            self._num_landed, self._running = 0, []
        if self._checksums and num_blocks > self._num_landed:
            new = slice(self._num_landed, num_blocks)
            self._num_landed = num_blocks
            self._running.append(self._thread.submit(self._compare, new))

    def finish(self) -> None:
        """All blocks are here. Raises ChecksumMismatch unless they are as they were sent."""
        self.landed(len(self._local))
        for part in self._running:
            part.result()

    def _compare(self, part: slice) -> None:
        if self._region.checksums(self._local[part]) != tuple(self._checksums[part]):
            raise ChecksumMismatch("a block was damaged on its way")
