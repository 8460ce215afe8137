"""Splitting and merging, blocks by tokens and heads by ranks: all arrive where they belong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model.shards import heads_of
from kv_transfer.head_map import head_pieces
from kv_transfer.token_map import Target, num_blocks

sizes = st.integers(1, 70)


@settings(deadline=None)
@given(sizes, sizes, st.integers(1, 300), st.integers(0, 5), st.data())
def test_every_token_arrives_once_whatever_the_chunks(theirs, ours, num_tokens, skip, data):
    """`there[i]` and `here[i]` hold token numbers; the oracle is counting."""
    num_theirs, num_ours = num_blocks(num_tokens, theirs), num_blocks(num_tokens, ours)
    skip = min(skip, num_ours)
    local = tuple(range(100, 100 + num_ours - skip))
    target = Target(local, skip * ours, ours)
    here = {}
    first = min(skip * ours // theirs, num_theirs)
    while first < num_theirs:
        count = data.draw(st.integers(1, num_theirs - first))
        for piece in target.pieces(first, count, theirs, num_tokens):
            assert piece.source_at + piece.num_tokens <= theirs
            assert piece.target_at + piece.num_tokens <= ours
            for i in range(piece.num_tokens):
                slot = (piece.target, piece.target_at + i)
                assert slot not in here
                here[slot] = (first + piece.source) * theirs + piece.source_at + i
        first += count
    expected = {
        (100 + (token // ours - skip), token % ours): token
        for token in range(skip * ours, num_tokens)
    }
    assert here == expected


def test_equal_sizes_are_whole_blocks():
    pieces = Target((7, 5, 6), 0, 16).pieces(0, 3, 16, 48)
    assert [(p.source, p.source_at, p.target, p.target_at, p.num_tokens) for p in pieces] == [
        (0, 0, 7, 0, 16),
        (1, 0, 5, 0, 16),
        (2, 0, 6, 0, 16),
    ]


degrees = st.sampled_from([1, 2, 4, 8, 16])


@settings(deadline=None)
@given(degrees, degrees, degrees)
def test_every_head_comes_from_a_rank_that_has_it(num_targets, num_sources, num_heads):
    for rank in range(num_targets):
        wanted = list(heads_of(rank, num_targets, num_heads))
        got: list[int] = []
        for piece in head_pieces(rank, num_targets, num_sources, num_heads):
            assert piece.target_head == len(got)
            theirs = heads_of(piece.source_rank, num_sources, num_heads)
            got += theirs[piece.source_head : piece.source_head + piece.num_heads]
        assert got == wanted


def test_heads_are_split_and_merged_in_order():
    assert [list(heads_of(rank, 4, 8)) for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [list(heads_of(rank, 4, 2)) for rank in range(4)] == [[0], [0], [1], [1]]


@pytest.mark.parametrize(("rank", "num_ranks", "num_heads"), [(0, 3, 8), (0, 0, 8), (2, 2, 8)])
def test_heads_that_cannot_be_dealt_out_are_refused(rank, num_ranks, num_heads):
    with pytest.raises(ValueError):
        heads_of(rank, num_ranks, num_heads)
