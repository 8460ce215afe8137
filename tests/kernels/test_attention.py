import pytest
import torch

from kernels import native_library
from kernels.attention import paged_attention, paged_attention_torch

FACES = [paged_attention, paged_attention_torch]


class Case:
    """One sequence's queries, keys and values, and ways to put them into a cache."""

    def __init__(self, length, heads, kv_heads, head_dim, dtype, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(count):
            return torch.randn(length, count, head_dim, generator=generator).to(dtype)

        self.length, self.scale = length, head_dim**-0.5
        self.query, self.keys, self.values = randn(heads), randn(kv_heads), randn(kv_heads)
        self.query = self.query * 3

    def cache(self, block_size, seed):
        """A cache with gaps, odd strides, NaN wherever nothing was written; and a block table."""
        generator = torch.Generator().manual_seed(seed)
        kv_heads, head_dim = self.keys.shape[1:]
        count = -(-self.length // block_size)
        shape = (count + 3, 2, 2, kv_heads, block_size, head_dim)
        storage = torch.full(shape, float("nan"), dtype=self.keys.dtype)
        k_cache, v_cache = storage[:, 1, 0], storage[:, 1, 1]
        table = torch.randperm(count + 3, generator=generator)[:count].to(torch.int32)
        for i, block in enumerate(table.tolist()):
            rows = slice(i * block_size, min((i + 1) * block_size, self.length))
            size = rows.stop - rows.start
            k_cache[block, :, :size] = self.keys[rows].transpose(0, 1)
            v_cache[block, :, :size] = self.values[rows].transpose(0, 1)
        return k_cache, v_cache, table

    def attend(self, face, start, end, block_size=16, seed=1, window=None, softcap=None):
        """Queries [start, end) as one chunk; later tokens are in the cache, not in the context."""
        k_cache, v_cache, table = self.cache(block_size, seed)
        return face(
            self.query[start:end],
            k_cache,
            v_cache,
            table[None],
            torch.tensor([0, end - start], dtype=torch.int32),
            torch.tensor([end], dtype=torch.int32),
            self.scale,
            window,
            softcap,
        )

    def exact(self, window=None, softcap=None):
        """Plain float64 attention."""
        group = self.query.shape[1] // self.keys.shape[1]
        keys = self.keys.double().repeat_interleave(group, 1)
        values = self.values.double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", self.query.double(), keys) * self.scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(self.length)[:, None] - torch.arange(self.length)[None, :]
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)


TOLERANCE = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim", "block_size"),
    [(1, 1, 1, 16, 1), (70, 4, 2, 64, 16), (131, 14, 2, 64, 32), (300, 3, 3, 80, 7)]
    + [(65, 8, 1, 256, 5), (64, 6, 3, 40, 64), (129, 2, 1, 128, 1)],
)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (33, None), (5, 20.0)])
def test_attention_equals_float64(
    face, dtype, length, heads, kv_heads, head_dim, block_size, window, softcap
):
    case = Case(length, heads, kv_heads, head_dim, dtype)
    exact = case.exact(window, softcap)
    out = case.attend(face, 0, length, block_size, window=window, softcap=softcap)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() < TOLERANCE[dtype]


def decode_all(case, face, **options):
    return torch.cat([case.attend(face, p, p + 1, **options) for p in range(case.length)])


def in_chunks(case, face, size, **options):
    starts = range(0, case.length, size)
    parts = [case.attend(face, s, min(s + size, case.length), **options) for s in starts]
    return torch.cat(parts)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("window", [None, 1, 50, 130])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 32), (7, 1, 64), (2, 2, 48)])
def test_chunk_borders_leave_no_trace(face, dtype, window, heads, kv_heads, head_dim):
    case = Case(201, heads, kv_heads, head_dim, dtype)
    whole = case.attend(face, 0, case.length, window=window)
    for size in (7, 64, 100):
        assert torch.equal(in_chunks(case, face, size, window=window), whole), size
    positions = [0, 1, 15, 16, 63, 64, 65, 127, 128, 150, 200]
    for p in positions:
        alone = case.attend(face, p, p + 1, block_size=3 + p % 5, seed=p, window=window)
        assert torch.equal(alone[0], whole[p]), p


@pytest.mark.parametrize("face", FACES)
def test_every_decode_step_equals_its_prefill_row(face):
    case = Case(90, 4, 2, 16, torch.bfloat16)
    assert torch.equal(decode_all(case, face, softcap=15.0), case.attend(face, 0, 90, softcap=15.0))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_batch_mates_threads_and_block_ids_leave_no_trace(face, dtype, count):
    lengths, starts = [150, 33, 97, 1, 64], [149, 0, 60, 0, 63]
    cases = [Case(n, 6, 2, 32, dtype, seed=n) for n in lengths]
    set_threads(1)
    alone = [case.attend(face, s, case.length) for case, s in zip(cases, starts, strict=True)]
    set_threads(count)
    try:
        mixed = attend_together(cases, starts, face)
    finally:
        set_threads(2)
    assert torch.equal(mixed, torch.cat(alone))


def set_threads(count):
    torch.set_num_threads(count)
    native_library.set_num_threads(count)


def attend_together(cases, starts, face):
    """All sequences in one batch over one cache, blocks of 8 in another order than alone."""
    parts = [case.cache(8, seed=9) for case in cases]
    firsts = [sum(len(p[0]) for p in parts[:i]) for i in range(len(parts))]
    tables = torch.zeros(len(parts), max(len(p[2]) for p in parts), dtype=torch.int32)
    for i, (part, first) in enumerate(zip(parts, firsts, strict=True)):
        tables[i, : len(part[2])] = part[2] + first
    sizes = torch.tensor([0] + [c.length - s for c, s in zip(cases, starts, strict=True)])
    return face(
        torch.cat([c.query[s:] for c, s in zip(cases, starts, strict=True)]),
        torch.cat([p[0] for p in parts]),
        torch.cat([p[1] for p in parts]),
        tables,
        sizes.cumsum(0).to(torch.int32),
        torch.tensor([c.length for c in cases], dtype=torch.int32),
        cases[0].scale,
        None,
        None,
    )


@pytest.mark.parametrize("face", FACES)
def test_query_may_be_a_strided_view(face):
    case = Case(20, 4, 2, 32, torch.float32)
    expected = case.attend(face, 0, 20)
    wide = torch.zeros(20, 8, 32)
    wide[:, 2:6] = case.query
    case.query = wide[:, 2:6]
    assert torch.equal(case.attend(face, 0, 20), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 4100])
def test_long_context_shared_among_threads(dtype, window):
    """Past the border where sums start anew: in a chunk on one thread, alone on three."""
    case = Case(8300, 2, 1, 16, dtype)
    set_threads(1)
    chunk = case.attend(paged_attention, 8120, 8300, window=window)
    set_threads(3)
    try:
        for p in (8120, 8191, 8192, 8193, 8299):
            alone = case.attend(paged_attention, p, p + 1, block_size=32, window=window)
            assert torch.equal(alone[0], chunk[p - 8120]), p
    finally:
        set_threads(2)
    reference = case.attend(paged_attention_torch, 8298, 8300, window=window)
    assert (reference.float() - chunk[-2:].float()).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("group", range(1, 10))
def test_a_decode_step_of_any_group_equals_its_prefill_row(group):
    """Few rows are read straight from the cache, many through panels; chunks of two as well."""
    case = Case(140, group, 1, 64 if group % 2 else 128, torch.bfloat16)
    whole = case.attend(paged_attention, 0, 140)
    for p in (0, 62, 63, 64, 127, 138):
        few = case.attend(paged_attention, p, p + 2, block_size=24)
        assert torch.equal(few, whole[p : p + 2]), p
        assert torch.equal(case.attend(paged_attention, p, p + 1)[0], whole[p]), p
