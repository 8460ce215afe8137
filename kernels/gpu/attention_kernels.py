"""The Triton kernels of paged attention; `kernels/gpu/attention.py` launches them.

Both pack the query heads that share a KV head into one tile, so each key is read once for the whole
group, and both call `_walk`, an online softmax over a range of keys in tiles at fixed absolute
positions. Decode cuts a context into spans, one per program, and merges what they found; in
batch-invariant mode a span is SPLIT_KEYS keys whatever the batch, and prefill adds up the same
spans in the same order.
Sources: PagedAttention, Kwon et al. 2023, arXiv:2309.06180; FlashAttention-2, Dao 2023,
arXiv:2307.08691; Flash-Decoding, Dao et al. 2023 (the split over keys).
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _walk(
    q,
    k_ptr,
    v_ptr,
    table_ptr,
    row_positions,
    first,
    last,
    context,
    scale,
    softcap,
    stride_block,
    stride_slot,
    peak,
    total,
    mixed,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The running softmax (peak, total, mixed) after the keys in [first, last) as well.

    first is a multiple of KEYS. Not masked: all rows see all these keys, and last is a multiple,
    too. scale has log2(e) in it, for exp2.
    """
    dims = tl.arange(0, DIM_PADDED)
    inside = dims < DIM
    for start in tl.range(first, last, KEYS):
        positions = start + tl.arange(0, KEYS)
        if IS_MASKED:
            live = positions < context
            blocks = tl.load(table_ptr + positions // BLOCK_SIZE, mask=live, other=0)
            mask = live[:, None] & inside[None, :]
        else:
            blocks = tl.load(table_ptr + positions // BLOCK_SIZE)
            mask = (positions >= 0)[:, None] & inside[None, :]
        rows = blocks.to(tl.int64) * stride_block + (positions % BLOCK_SIZE) * stride_slot
        at = rows[:, None] + dims[None, :]
        if IS_MASKED or DIM != DIM_PADDED:
            keys = tl.load(k_ptr + at, mask=mask, other=0.0)
            values = tl.load(v_ptr + at, mask=mask, other=0.0)
        else:
            keys = tl.load(k_ptr + at)
            values = tl.load(v_ptr + at)
        if keys.dtype != q.dtype:  # an eight-bit cache
            keys = keys.to(q.dtype)
            values = values.to(q.dtype)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        if HAS_SOFTCAP:
            scaled = scores * (scale / softcap)
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scaled) - 1.0) * _LOG2_E
        else:
            scores = scores * (scale * _LOG2_E)
        if IS_MASKED:
            seen = positions[None, :] <= row_positions[:, None]
            if WINDOW > 0:
                seen = seen & (positions[None, :] > row_positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        # A row that has seen nothing yet keeps -inf; subtracting that would make a NaN.
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(peak - shift)
        total = total * decay + tl.sum(weights, axis=1)
        mixed = mixed * decay[:, None]
        mixed = tl.dot(weights.to(values.dtype), values, acc=mixed, input_precision=PRECISION)
        peak = new_peak
    return peak, total, mixed


@triton.jit
def _merge(peak, total, mixed, other_peak, other_total, other_mixed):
    """Two softmax states over different keys as one; the first may be empty."""
    new_peak = tl.maximum(peak, other_peak)
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    mine, others = tl.exp2(peak - shift), tl.exp2(other_peak - shift)
    return (
        new_peak,
        total * mine + other_total * others,
        mixed * mine[:, None] + other_mixed * others[:, None],
    )


@triton.jit
def _sequence_of(starts_ptr, num_seqs, tile, TOKENS: tl.constexpr):
    """Which sequence a tile of queries belongs to, if sequence i's tiles begin at
    `starts[i] // TOKENS + i`: numbers that need no pass over the batch on the host."""
    low = tl.zeros([], dtype=tl.int32)
    high = low + num_seqs
    while low < high:
        middle = (low + high) // 2
        begins = tl.load(starts_ptr + middle) // TOKENS + middle
        if begins <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["num_seqs", "num_tiles", "stride_table"])
def prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    tables_ptr,
    starts_ptr,
    contexts_ptr,
    num_seqs,
    num_tiles,
    scale,
    softcap,
    stride_table,
    q_token,
    q_head,
    out_token,
    out_head,
    stride_block,
    stride_kv_head,
    stride_slot,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_INVARIANT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """TOKENS neighbouring queries of one sequence times the GROUP heads that share a KV head.

    Sequences with a single query are left to `decode_kernel`, except in invariant mode.
    """
    tile = num_tiles - 1 - tl.program_id(0)  # those with the longest context begin first
    sequence = _sequence_of(starts_ptr, num_seqs, tile, TOKENS)
    start = tl.load(starts_ptr + sequence)
    num_queries = tl.load(starts_ptr + sequence + 1) - start
    first_query = (tile - start // TOKENS - sequence) * TOKENS
    if (first_query < num_queries) & (IS_INVARIANT | (num_queries > 1)):
        kv_head = tl.program_id(1)
        context = tl.load(contexts_ptr + sequence)
        row = tl.arange(0, ROWS)
        query = first_query + row // GROUP
        is_row = (row < TOKENS * GROUP) & (query < num_queries)
        row_positions = context - num_queries + query
        heads = kv_head * GROUP + row % GROUP
        dims = tl.arange(0, DIM_PADDED)
        mask = is_row[:, None] & (dims < DIM)[None, :]
        token = (start + query).to(tl.int64)
        q = tl.load(
            q_ptr + (token * q_token + heads * q_head)[:, None] + dims[None, :],
            mask=mask,
            other=0.0,
        )
        k_ptr += kv_head * stride_kv_head
        v_ptr += kv_head * stride_kv_head
        table = tables_ptr + sequence.to(tl.int64) * stride_table

        first_position = context - num_queries + first_query
        last_position = tl.minimum(first_position + TOKENS, context) - 1
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, DIM_PADDED], tl.float32)
        if IS_INVARIANT:
            oldest = tl.zeros([], dtype=tl.int32)
            if WINDOW > 0:
                oldest = tl.maximum(first_position - WINDOW + 1, 0) // SPLIT_KEYS * SPLIT_KEYS
            for piece in tl.range(oldest, last_position + 1, SPLIT_KEYS):
                part_peak, part_total, part_mixed = _walk(
                    q, k_ptr, v_ptr, table, row_positions,
                    piece, tl.minimum(piece + SPLIT_KEYS, last_position + 1), context,
                    scale, softcap, stride_block, stride_slot,
                    tl.full([ROWS], float("-inf"), tl.float32),
                    tl.zeros([ROWS], tl.float32),
                    tl.zeros([ROWS, DIM_PADDED], tl.float32),
                    BLOCK_SIZE, KEYS, DIM, DIM_PADDED, WINDOW, HAS_SOFTCAP, True, PRECISION,
                )  # fmt: skip
                peak, total, mixed = _merge(peak, total, mixed, part_peak, part_total, part_mixed)
        else:
            oldest = tl.zeros([], dtype=tl.int32)
            seen_by_all = oldest
            if WINDOW > 0:
                oldest = tl.maximum(first_position - WINDOW + 1, 0) // KEYS * KEYS
                seen_by_all = tl.maximum(last_position - WINDOW + KEYS, 0) // KEYS * KEYS
            whole_end = (first_position + 1) // KEYS * KEYS
            whole_start = tl.minimum(seen_by_all, whole_end)
            if WINDOW > 0:
                # Where the window's edge lies within a tile.
                whole_start = tl.maximum(whole_start, oldest)
                whole_end = tl.maximum(whole_end, whole_start)
                peak, total, mixed = _walk(
                    q, k_ptr, v_ptr, table, row_positions, oldest, whole_start, context,
                    scale, softcap, stride_block, stride_slot, peak, total, mixed,
                    BLOCK_SIZE, KEYS, DIM, DIM_PADDED, WINDOW, HAS_SOFTCAP, True, PRECISION,
                )  # fmt: skip
            peak, total, mixed = _walk(
                q, k_ptr, v_ptr, table, row_positions, whole_start, whole_end, context,
                scale, softcap, stride_block, stride_slot, peak, total, mixed,
                BLOCK_SIZE, KEYS, DIM, DIM_PADDED, WINDOW, HAS_SOFTCAP, False, PRECISION,
            )  # fmt: skip
            peak, total, mixed = _walk(
                q, k_ptr, v_ptr, table, row_positions, whole_end, last_position + 1, context,
                scale, softcap, stride_block, stride_slot, peak, total, mixed,
                BLOCK_SIZE, KEYS, DIM, DIM_PADDED, WINDOW, HAS_SOFTCAP, True, PRECISION,
            )  # fmt: skip
        result = (
            mixed / tl.where(total > 0, total, 1.0)[:, None]
        )  # rows beyond the tile saw nothing
        at = (token * out_token + heads * out_head)[:, None] + dims[None, :]
        tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _spans(
    context,
    num_programs,
    SPLIT_KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_INVARIANT: tl.constexpr,
):
    """Where the first span begins, and how many keys a span has."""
    first = tl.zeros([], dtype=tl.int32)
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0) // SPLIT_KEYS * SPLIT_KEYS
    span = first * 0 + SPLIT_KEYS
    if not IS_INVARIANT:
        span = tl.cdiv(tl.cdiv(context - first, num_programs), SPLIT_KEYS) * SPLIT_KEYS
    return first, span


@triton.jit(do_not_specialize=["num_programs", "stride_table"])
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    parts_ptr,
    tables_ptr,
    starts_ptr,
    contexts_ptr,
    scale,
    softcap,
    stride_table,
    q_token,
    q_head,
    stride_block,
    stride_kv_head,
    stride_slot,
    num_heads,
    num_programs,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_INVARIANT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The one query of a sequence against one span of its keys.

    parts: [seqs, heads, programs, 2 + DIM_PADDED] float32: peak, total, and the unnormalised mix.
    """
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    start = tl.load(starts_ptr + sequence)
    if tl.load(starts_ptr + sequence + 1) - start == 1:
        context = tl.load(contexts_ptr + sequence)
        begin, span = _spans(context, num_programs, SPLIT_KEYS, WINDOW, IS_INVARIANT)
        begin += tl.program_id(2) * span
        if begin < context:
            row = tl.arange(0, ROWS)
            heads = kv_head * GROUP + row
            dims = tl.arange(0, DIM_PADDED)
            is_head = row < GROUP
            mask = is_head[:, None] & (dims < DIM)[None, :]
            q_row = q_ptr + start.to(tl.int64) * q_token
            q = tl.load(q_row + (heads * q_head)[:, None] + dims[None, :], mask=mask, other=0.0)
            peak, total, mixed = _walk(
                q,
                k_ptr + kv_head * stride_kv_head,
                v_ptr + kv_head * stride_kv_head,
                tables_ptr + sequence * stride_table,
                tl.zeros([ROWS], tl.int32) + (context - 1),
                begin, tl.minimum(begin + span, context), context,
                scale, softcap, stride_block, stride_slot,
                tl.full([ROWS], float("-inf"), tl.float32),
                tl.zeros([ROWS], tl.float32),
                tl.zeros([ROWS, DIM_PADDED], tl.float32),
                BLOCK_SIZE, KEYS, DIM, DIM_PADDED, WINDOW, HAS_SOFTCAP, True, PRECISION,
            )  # fmt: skip
            part = (sequence * num_heads + heads) * num_programs + tl.program_id(2)
            at = parts_ptr + part * (2 + DIM_PADDED)
            tl.store(at, peak, mask=is_head)
            tl.store(at + 1, total, mask=is_head)
            tl.store(at[:, None] + 2 + dims[None, :], mixed, mask=is_head[:, None])


@triton.jit(do_not_specialize=["num_programs"])
def combine_kernel(
    parts_ptr,
    out_ptr,
    starts_ptr,
    contexts_ptr,
    out_token,
    out_head,
    num_heads,
    num_programs,
    SPLIT_KEYS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_INVARIANT: tl.constexpr,
):
    """What the spans of one head of one sequence found, merged in order."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    start = tl.load(starts_ptr + sequence)
    if tl.load(starts_ptr + sequence + 1) - start == 1:
        context = tl.load(contexts_ptr + sequence)
        begin, span = _spans(context, num_programs, SPLIT_KEYS, WINDOW, IS_INVARIANT)
        dims = tl.arange(0, DIM_PADDED)
        one = tl.arange(0, 1)
        peak = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        mixed = tl.zeros([1, DIM_PADDED], tl.float32)
        parts = parts_ptr + (sequence * num_heads + head) * num_programs * (2 + DIM_PADDED)
        for number in tl.range(0, tl.cdiv(context - begin, span)):
            at = parts + number * (2 + DIM_PADDED)
            peak, total, mixed = _merge(
                peak,
                total,
                mixed,
                tl.load(at + one),
                tl.load(at + 1 + one),
                tl.load(at + 2 + dims[None, :]),
            )
        result = mixed / total[:, None]
        to = out_ptr + start.to(tl.int64) * out_token + head * out_head + dims[None, :]
        tl.store(to, result.to(out_ptr.dtype.element_ty), mask=(dims < DIM)[None, :])
