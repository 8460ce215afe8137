"""Norms, activation, rope, cache writes, noise, cuts and products, each against plain torch."""

import pytest
import torch

from common.engine.truncation import cut_off
from kernels.activation import silu_mul_torch
from kernels.kv_store import FP8, store_kv_torch
from kernels.linear import linear_torch, pack_torch
from kernels.noise import gumbel_at_torch, gumbel_torch
from kernels.norm import rms_norm_torch
from kernels.quantize import quantize
from kernels.rope import apply_rope_torch

DTYPES = [torch.float32, torch.float16]


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(out, expected):
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-3
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_rms_norm(dtype):
    from kernels.gpu.norm import add_rms_norm_triton, rms_norm_triton

    x, weight = randn(5, 100, dtype=dtype), randn(100, dtype=dtype, seed=1)
    close(rms_norm_triton(x, weight, 1e-5), rms_norm_torch(x, weight, 1e-5))
    heads = randn(3, 7, 16, dtype=dtype)[:, 2:5]  # a view, as queries and keys are
    close(rms_norm_triton(heads, weight[:16], 1e-6), rms_norm_torch(heads, weight[:16], 1e-6))
    residual = randn(5, 100, dtype=dtype, seed=2)
    out, total = add_rms_norm_triton(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    close(out, rms_norm_torch(x + residual, weight, 1e-5))
    assert rms_norm_triton(x[:0], weight, 1e-5).shape == (0, 100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [3, 1025])
def test_gpu_silu_mul(dtype, dim):
    from kernels.gpu.activation import silu_mul_triton

    gate_up = randn(4, 2 * dim, dtype=dtype) * 4
    close(silu_mul_triton(gate_up), silu_mul_torch(gate_up))


def kv_cache(dtype, kv_heads=3, dim=20, block_size=4):
    cache = torch.zeros(6, 2, 2, kv_heads, block_size, dim, dtype=dtype)
    return cache[:, 1, 0], cache[:, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [10, 6])  # the whole head turns, or its first 12 of 20
def test_gpu_rope_and_store(dtype, half):
    from kernels.gpu.rope import apply_rope_triton, rope_and_store_triton

    qkv = randn(4, 5 + 3 + 3, 20, dtype=dtype)
    positions = torch.tensor([0, 1, 17, 3])
    slots = torch.tensor([5, -1, 23, 0])
    angles = torch.outer(torch.arange(32.0), 0.7 ** torch.arange(half))
    tables = (angles.cos(), angles.sin(), positions)
    expected = qkv.clone()
    apply_rope_torch(expected[:, :5], expected[:, 5:8], *tables)
    k_right, v_right = kv_cache(dtype)
    store_kv_torch(expected[:, 5:8], expected[:, 8:], k_right, v_right, slots)

    fused, (k_cache, v_cache) = qkv.clone(), kv_cache(dtype)
    q, k, v = fused[:, :5], fused[:, 5:8], fused[:, 8:]
    rope_and_store_triton(q, k, v, *tables, k_cache, v_cache, slots)
    assert torch.equal(q, expected[:, :5])
    assert torch.equal(k_cache, k_right) and torch.equal(v_cache, v_right)

    alone = qkv.clone()
    apply_rope_triton(alone[:, :5], alone[:, 5:8], *tables)
    assert torch.equal(alone, expected)


def test_gpu_store_kv_skips_padding():
    from kernels.gpu.rope import store_kv_triton

    k, v = randn(3, 3, 20), randn(3, 3, 20, seed=1)
    slots = torch.tensor([7, -1, 12])
    caches, expected = kv_cache(torch.float32), kv_cache(torch.float32)
    store_kv_triton(k, v, caches[0], caches[1], slots)
    store_kv_torch(k, v, expected[0], expected[1], slots)
    assert torch.equal(caches[0], expected[0]) and torch.equal(caches[1], expected[1])


def test_gpu_rope_and_store_fill_an_eight_bit_cache():
    """With numbers that eight bits hold or that are too large: the interpreter rounds wrongly."""
    from kernels.gpu.rope import rope_and_store_triton, store_kv_triton

    qkv = (randn(4, 5 + 3 + 3, 20) + 3).to(FP8).float()
    qkv[0, 7, :6], qkv[1, 9, :2] = 1e4, -1e9  # beyond what eight bits hold
    positions, slots = torch.tensor([0, 1, 17, 3]), torch.tensor([5, -1, 23, 0])
    angles = torch.zeros(32, 8)
    tables = (angles.cos(), angles.sin(), positions)
    q, k, v = qkv[:, :5], qkv[:, 5:8], qkv[:, 8:]
    expected, fused, plain = kv_cache(FP8), kv_cache(FP8), kv_cache(FP8)
    store_kv_torch(k, v, expected[0], expected[1], slots)
    rope_and_store_triton(q, k, v, *tables, fused[0], fused[1], slots)
    store_kv_triton(k, v, plain[0], plain[1], slots)
    for found in (fused, plain):
        for cache, right in zip(found, expected, strict=True):
            assert torch.equal(cache.view(torch.uint8), right.view(torch.uint8))
    assert expected[0].float().abs().max() == 448.0


def test_gpu_noise_has_the_same_bits():
    from kernels.gpu.noise import gumbel_at_triton, gumbel_triton

    seeds = torch.tensor([0, -1, 2**63 - 1, 123456789012345])
    positions = torch.tensor([0, 77, 2**40 + 5, 131071])
    assert torch.equal(gumbel_triton(seeds, positions, 2003), gumbel_torch(seeds, positions, 2003))
    ids = torch.tensor([[0, 5], [2002, 128255], [3, 3], [1, 2]])
    at = gumbel_at_triton(seeds, positions, ids)
    assert torch.equal(at, gumbel_at_torch(seeds, positions, ids))


def test_gpu_cut_off_keeps_what_the_sampler_keeps():
    from kernels.gpu.truncation import cut_off_triton

    options = [
        (0.0, 0, 1.0), (0.0, 1, 1.0), (0.0, 40, 1.0), (0.0, 0, 0.9), (0.1, 0, 1.0),
        (0.05, 20, 0.5), (0.0, 900, 0.99), (0.0, 5000, 1.0), (0.0, 300, 0.01),
    ]  # fmt: skip
    x = randn(len(options), 1003) * 3
    x[2, 10:60] = x[2].max()  # ties at the edge stay together
    x[4, 5] = float("-inf")
    min_p = torch.tensor([option[0] for option in options])
    top_k = torch.tensor([option[1] for option in options])
    top_p = torch.tensor([option[2] for option in options])
    cut = cut_off_triton(x, min_p, top_k, top_p)
    expected = cut_off(x, min_p, top_k, top_p)
    assert torch.equal(x >= cut[:, None], x >= expected[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_batch_invariant_linear(dtype):
    from kernels.gpu.linear import INVARIANT, linear_triton

    x, weight, bias = randn(70, 100, dtype=dtype), randn(131, 100, dtype=dtype, seed=1), randn(131)
    for out_dtype in (dtype, torch.float32):
        out = linear_triton(x, weight, None, bias, out_dtype, INVARIANT)
        expected = linear_torch(x.float(), pack_torch(weight.float(), bias), torch.float32)
        torch.testing.assert_close(out.float(), expected, rtol=3e-3, atol=2e-2)
        for count in (1, 5, 64):
            few = linear_triton(x[:count], weight, None, bias, out_dtype, INVARIANT)
            assert torch.equal(few, out[:count])


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
@pytest.mark.parametrize("rows", [1, 40])
def test_gpu_quantized_linear(rows, quantization):
    from kernels.gpu.linear import NARROW_TILES, linear_gpu, linear_triton

    x, bias, weight = randn(rows, 270), randn(70), randn(70, 270, seed=1)
    numbers, scales = quantize(weight, quantization)
    stored = numbers.float() * scales[:, None]
    assert (stored - weight).abs().max() < 0.07 * weight.abs().max()
    expected = (x.double() @ stored.double().T + bias).float()
    found = [linear_gpu(x, numbers, scales, bias, torch.float32)]
    for tile in NARROW_TILES if rows == 40 else ():
        found.append(linear_triton(x, numbers, scales, bias, torch.float32, tile))
    for out in found:
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
