"""The small per-row operations: norm, rope, activation, KV store, arg max, log-softmax."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from kernels import activation, kv_store, norm, rope, sampling

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("face", [norm.rms_norm, norm.rms_norm_torch])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100, 896, 1031])
def test_rms_norm_equals_llama(face, dtype, dim):
    x, weight = torch.randn(9, dim).to(dtype) * 3, torch.randn(dim).to(dtype)
    reference = LlamaRMSNorm(dim, eps=1e-6).to(dtype)
    reference.weight.data = weight
    out = face(x, weight, 1e-6)
    assert out.dtype == dtype
    torch.testing.assert_close(out, reference(x).detach(), rtol=1e-6, atol=1e-6) if (
        dtype == torch.float32
    ) else torch.testing.assert_close(
        out, reference(x).detach(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_rounds_the_sum_first(dtype):
    x, residual = torch.randn(11, 72).to(dtype), torch.randn(11, 72).to(dtype) * 5
    weight = torch.randn(72).to(dtype)
    normed, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, norm.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("face", [norm.rms_norm, norm.rms_norm_torch])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_row_alone_and_strided(face, dtype):
    qkv, weight = torch.randn(40, 6, 72).to(dtype), torch.randn(64).to(dtype)
    view = qkv[:, 1:5, 4:68]
    out = face(view, weight, 1e-6)
    assert out.is_contiguous()
    for t, h in ((0, 0), (7, 3), (39, 1)):
        assert torch.equal(face(view[t, h].clone(), weight, 1e-6), out[t, h])
        assert torch.equal(face(view[t : t + 1, h : h + 1], weight, 1e-6)[0, 0], out[t, h])


@pytest.mark.parametrize("face", [activation.silu_mul, activation.silu_mul_torch])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 16, 100, 4864])
def test_silu_mul(face, dtype, dim):
    gate_up = torch.randn(7, 2 * dim).to(dtype) * 4
    gate_up[0, 0] = -100.0
    gate, up = gate_up.double().chunk(2, -1)
    rounded = functional.silu(gate).to(dtype).double()
    out = face(gate_up)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), rounded * up, rtol=2.1 * eps, atol=1e-7)
    for i in range(7):
        assert torch.equal(face(gate_up[i : i + 1].clone()), out[i : i + 1])
    assert torch.equal(face(torch.cat([gate_up, gate_up], 1)[:, : 2 * dim]), out)


@pytest.mark.parametrize("face", [rope.apply_rope, rope.apply_rope_torch])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("head_dim", "rotary"), [(64, 64), (80, 80), (96, 32), (128, 128), (10, 6)]
)
def test_rope_equals_llama_bit_for_bit(face, dtype, head_dim, rotary):
    angles = torch.rand(50, rotary // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(0, 50, (23,))
    qkv = torch.randn(23, 9, head_dim).to(dtype)
    untouched = qkv.clone()
    q, k = qkv[:, :4], qkv[:, 4:6]
    twice = torch.cat([angles, angles], -1)[positions][None]
    expected = apply_rotary_pos_emb(
        q[None, ..., :rotary].transpose(1, 2),
        k[None, ..., :rotary].transpose(1, 2),
        twice.cos().to(dtype),
        twice.sin().to(dtype),
    )
    face(q, k, cos, sin, positions)
    assert torch.equal(q[..., :rotary], expected[0][0].transpose(0, 1))
    assert torch.equal(k[..., :rotary], expected[1][0].transpose(0, 1))
    assert torch.equal(qkv[:, :6, rotary:], untouched[:, :6, rotary:])
    assert torch.equal(qkv[:, 6:], untouched[:, 6:])


@pytest.mark.parametrize("face", [kv_store.store_kv, kv_store.store_kv_torch])
@pytest.mark.parametrize("dtype", DTYPES)
def test_store_kv(face, dtype):
    cache = torch.zeros(6, 3, 2, 4, 5, 24, dtype=dtype)
    before = cache.clone()
    qkv = torch.randn(7, 12, 24).to(dtype)
    k, v = qkv[:, 4:8], qkv[:, 8:]
    slots = torch.tensor([29, 0, -1, 13, 14, -1, 7])
    face(k, v, cache[:, 1, 0], cache[:, 1, 1], slots)
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            before[slot // 5, 1, 0, :, slot % 5] = k[i]
            before[slot // 5, 1, 1, :, slot % 5] = v[i]
    assert torch.equal(cache, before)


@pytest.mark.parametrize("face", [sampling.best, sampling.best_torch])
def test_the_best_of_each_row(face):
    for vocab in (1, 3, 16, 17, 1000, 32003):
        logits = torch.randn(5, vocab)
        logits[1] = -torch.inf
        logits[2] = logits[2].round()  # many ties
        expected = [r.index(max(r)) for r in logits.tolist()]
        assert face(logits) == (expected, [1])
    wide = torch.randn(4, 300)
    wide[0, 7] = wide[0, 250] = torch.nan
    wide[3, 5] = torch.inf
    tokens, broken = face(wide)
    assert (tokens[0], tokens[3], broken) == (7, 5, [0, 3])
    assert face(wide[:, 10:200]) == face(wide[:, 10:200].clone())


@pytest.mark.parametrize("face", [sampling.log_softmax, sampling.log_softmax_torch])
def test_log_softmax(face):
    for vocab in (1, 3, 16, 17, 1000, 32003):
        logits = torch.randn(6, vocab) * 10
        logits[1, vocab // 2] = 80.0
        if vocab > 2:
            logits[2, 1] = -torch.inf
        out = face(logits)
        exact = logits.double().log_softmax(-1)
        torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=2e-6)
        for i in range(6):
            assert torch.equal(face(logits[i : i + 1].clone())[0], out[i])
