"""Which KV heads of which rank go where, between instances of different tensor-parallel degree.

Pure arithmetic. How heads are dealt out in one instance is in `common/model/shards.py`.

    8 heads   2 ranks there   |0 1 2 3|4 5 6 7|
              4 ranks here    |0 1|2 3|4 5|6 7|
"""

from __future__ import annotations

from dataclasses import dataclass

from common.model.shards import heads_of


@dataclass(frozen=True, slots=True)
class HeadPiece:
    """Neighbouring heads of one source rank that a target rank needs."""

    source_rank: int
    source_head: int  # within that rank
    target_head: int  # within the target rank
    num_heads: int


def head_pieces(
    target_rank: int, num_target_ranks: int, num_source_ranks: int, num_heads: int
) -> list[HeadPiece]:
    """Where `target_rank` finds its heads, in their order. Of copies, the first is read."""
    wanted = heads_of(target_rank, num_target_ranks, num_heads)
    found: list[HeadPiece] = []
    head = wanted.start
    for source_rank in range(num_source_ranks):
        theirs = heads_of(source_rank, num_source_ranks, num_heads)
        if head in theirs and head < wanted.stop:
            count = min(theirs.stop, wanted.stop) - head
            found.append(HeadPiece(source_rank, head - theirs.start, head - wanted.start, count))
            head += count
    return found
