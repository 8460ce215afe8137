"""What one step of prefill filled, on its way into an offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kv_transfer.lease import Offer


class FilledBlocks(Protocol):
    """Blocks of one request that prefill has just completed, in token order, held for us."""

    @property
    def request_id(self) -> str: ...
    @property
    def first(self) -> int: ...
    @property
    def block_ids(self) -> Sequence[int]: ...
    @property
    def epochs(self) -> Sequence[int]: ...
    @property
    def hashes(self) -> Sequence[str]: ...
    @property
    def is_last(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of prefill filled. `offer` is the one it belongs to: by the time the batch is
    published, the request may have another, or none."""

    offer: Offer | None
    filled: FilledBlocks
    first_token: int | None
    checksums: tuple[int, ...] = ()
