"""What enters and leaves the prefix cache, in order, for whoever wants to know.

Written by the block pool and the publisher inside a step, taken away with the step's result. Plain
data; knows no wire format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A run of neighbouring full blocks of one sequence that can be found from now on."""

    digests: tuple[bytes, ...]
    parent: bytes | None  # of the block before the first; None: the run begins the sequence
    token_ids: tuple[int, ...]  # of all of them, in order
    salt: str  # of its KV (common/request.py: kv_salt_of)


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BlocksHeld:
    """Everything that can be found at this point, in no order: what follows changes it."""

    digests: tuple[bytes, ...]


PrefixEvent = BlocksStored | BlocksRemoved | BlocksHeld


class PrefixLog:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._events: list[PrefixEvent] = []
        self._removed: list[bytes] = []  # the last ones, until something else happens

    def __len__(self) -> int:
        return len(self._events) + len(self._removed)

    def stored(
        self,
        indices: Sequence[int],
        digests: Sequence[bytes],
        tokens: NDArray[np.int64],
        salt: str,
    ) -> None:
        """Blocks `indices` (rising) of a sequence with these digests and tokens."""
        self._close_run()
        size = self._block_size
        for first, end in _runs(indices):
            self._events.append(
                BlocksStored(
                    tuple(digests[first:end]),
                    digests[first - 1] if first else None,
                    tuple(tokens[first * size : end * size].tolist()),
                    salt,
                )
            )

    def removed(self, digest: bytes) -> None:
        self._removed.append(digest)

    def held(self, digests: tuple[bytes, ...]) -> None:
        self._close_run()
        self._events.append(BlocksHeld(digests))

    def drain(self) -> tuple[PrefixEvent, ...]:
        self._close_run()
        events, self._events = self._events, []
        return tuple(events)

    def _close_run(self) -> None:
        if self._removed:
            self._events.append(BlocksRemoved(tuple(self._removed)))
            self._removed = []


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as runs of neighbours: [2, 3, 7] → [(2, 4), (7, 8)]."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = runs[-1][0], index + 1
        else:
            runs.append((index, index + 1))
    return runs
