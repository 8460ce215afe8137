"""Against the plain torch face, which tests/kernels/test_attention.py holds against float64."""

from typing import Any

import pytest
import torch

from kernels.attention import paged_attention_torch
from kernels.kv_store import FP8, narrowed


def batch(lens, contexts, heads, kv_heads, dim, block_size, dtype, seed=0):
    """Queries of several sequences over a cache that holds NaN wherever nothing was written."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    counts = [-(-context // block_size) for context in contexts]
    num_blocks = sum(counts) + 3
    cache = torch.full((num_blocks, 2, 2, kv_heads, block_size, dim), float("nan"), dtype=dtype)
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.zeros(len(lens), max(counts), dtype=torch.int32)
    for row, (count, context) in enumerate(zip(counts, contexts, strict=True)):
        blocks = [free.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        for i, block in enumerate(blocks):
            live = min(block_size, context - i * block_size)
            cache[block, 1, :, :, :live] = randn(2, kv_heads, live, dim)
    starts = torch.tensor([0, *lens]).cumsum(0).to(torch.int32)
    return (
        randn(sum(lens), heads, dim),
        cache[:, 1, 0],
        cache[:, 1, 1],
        tables,
        starts,
        torch.tensor(contexts, dtype=torch.int32),
        dim**-0.5,
    )


CASES = [
    # queries, contexts, heads, KV heads, head dim, block size, dtype, window, soft cap
    ([1, 1, 1], [1, 70, 300], 4, 2, 64, 16, torch.float32, None, None),
    ([1, 1], [600, 33], 7, 1, 80, 32, torch.float16, 40, None),
    ([5, 1, 40], [5, 300, 90], 6, 2, 48, 7, torch.float32, None, None),
    ([9, 1], [300, 20], 4, 4, 16, 64, torch.float16, 50, 10.0),
]


@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gpu_attention_equals_the_reference(case, is_invariant):
    from kernels.gpu.attention import paged_attention_triton
    from kernels.gpu.choice import set_batch_invariant

    lens, contexts, heads, kv_heads, dim, block_size, dtype, window, softcap = case
    arguments: tuple[Any, ...] = batch(lens, contexts, heads, kv_heads, dim, block_size, dtype)
    set_batch_invariant(is_invariant)
    arguments = (*arguments, window, softcap)
    expected = paged_attention_torch(*arguments)
    arguments = (*arguments, max(lens), max(contexts))
    out = paged_attention_triton(*arguments)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lens", [(1, 1, 1), (5, 1, 40)])
def test_gpu_attention_reads_an_eight_bit_cache(lens):
    from kernels.gpu.attention import paged_attention_triton

    contexts = [1, 70, 300] if sum(lens) == 3 else [5, 300, 90]
    query, k, v, *rest = batch(lens, contexts, 4, 2, 64, 16, torch.float32)
    k, v = (narrowed(cache.nan_to_num(500.0), FP8) for cache in (k, v))
    wide: tuple[Any, ...] = (query, k.float(), v.float(), *rest, None, None)
    narrow: tuple[Any, ...] = (query, k, v, *rest, None, None)
    expected = paged_attention_torch(*wide)
    narrow = (*narrow, max(lens), max(contexts))
    out = paged_attention_triton(*narrow)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(paged_attention_torch(*narrow[:-2]), expected)


def test_a_gpu_row_has_the_same_bits_from_prefill_and_decode():
    from kernels.gpu.attention import paged_attention_triton
    from kernels.gpu.choice import set_batch_invariant

    set_batch_invariant(True)
    query, k_cache, v_cache, tables, starts, contexts, scale = batch(
        [20], [530], 4, 2, 32, 16, torch.float32
    )
    caches = (k_cache, v_cache, tables)
    chunk = paged_attention_triton(query, *caches, starts, contexts, scale, None, None, 20, 530)
    for row in (0, 7, 19):
        alone = paged_attention_triton(
            query[row : row + 1],
            *caches,
            torch.tensor([0, 1], dtype=torch.int32),
            torch.tensor([511 + row], dtype=torch.int32),
            scale,
            None,
            None,
            1,
            1024,  # an upper bound changes nothing
        )
        assert torch.equal(chunk[row : row + 1], alone)


def test_no_sequences_give_no_rows():
    from kernels.gpu.attention import paged_attention_triton

    query, k_cache, v_cache, tables, _, _, scale = batch([1], [4], 2, 2, 16, 4, torch.float32)
    nothing = torch.zeros(0, dtype=torch.int32)
    starts = torch.zeros(1, dtype=torch.int32)
    caches = (k_cache, v_cache, tables[:0])
    out = paged_attention_triton(query[:0], *caches, starts, nothing, scale, None, None, 1, 1)
    assert out.shape == (0, 2, 16)
