"""What a model asks of the ranks it is shared by. Knows no process and no network."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from common.model.shards import Shard


class Ranks(Protocol):
    """All ranks call the same methods, in the same order, with tensors of the same shapes."""

    @property
    def shard(self) -> Shard: ...

    @property
    def is_wide(self) -> bool:
        """Are parts wanted in float32, so that the sum is rounded once?"""
        ...

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, equal on all of them bit by bit. It may be in `part`'s
        memory."""
        ...

    def gather_columns(self, part: Tensor) -> Tensor:
        """All parts [rows, columns] side by side in rank order, on rank 0; elsewhere nothing of
        use."""
        ...


class Alone:
    """One rank, which has everything."""

    shard = Shard()
    is_wide = False

    def sum(self, part: Tensor) -> Tensor:
        return part

    def gather_columns(self, part: Tensor) -> Tensor:
        return part
