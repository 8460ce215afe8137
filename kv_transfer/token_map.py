"""Which tokens of which block go where, between pools whose blocks hold different numbers of them.

Pure arithmetic: it knows no bytes and no memory. With blocks of 16 tokens there and 32 here:

    theirs   |0      15|16     31|32     47|
    ours     |0                31|32            63|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens of one source block that go into one of our blocks."""

    source: int  # index into the list of source blocks that is being copied
    source_at: int  # token within that block
    target: int  # id of our block
    target_at: int  # token within that
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Target:
    """Our blocks for the tokens from `first_token` on, which is the first of `block_ids[0]`."""

    block_ids: tuple[int, ...]
    first_token: int
    block_size: int

    def pieces(self, first: int, num_sources: int, source_size: int, end: int) -> list[Piece]:
        """Where the tokens of the source's blocks number `first`, `first + 1`, … go.

        Tokens before ours and from `end` on go nowhere: they are known already, or garbage.
        """
        token = max(first * source_size, self.first_token)
        stop = min((first + num_sources) * source_size, end)
        found = []
        while token < stop:
            source, source_at = divmod(token - first * source_size, source_size)
            target, target_at = divmod(token - self.first_token, self.block_size)
            num_tokens = min(source_size - source_at, self.block_size - target_at, stop - token)
            found.append(Piece(source, source_at, self.block_ids[target], target_at, num_tokens))
            token += num_tokens
        return found


def num_blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def whole_blocks(pieces: Sequence[Piece]) -> list[int]:
    """The target blocks, one per source block, where both sides' blocks are alike."""
    return [piece.target for piece in pieces]
