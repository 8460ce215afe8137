"""The compiled kernels against plain torch on the same GPU. Each check returns its worst error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.attention_cases import AttentionCase, exact_attention
from kernels.activation import silu_mul, silu_mul_torch
from kernels.attention import paged_attention
from kernels.gpu.choice import set_batch_invariant
from kernels.gpu.truncation import cut_off_triton
from kernels.kv_store import FP8, store_kv_torch
from kernels.linear import linear, pack
from kernels.noise import gumbel, gumbel_torch
from kernels.norm import add_rms_norm, rms_norm_torch
from kernels.quantize import Quantization, quantize
from kernels.rope import apply_rope_torch, rope_and_store

ATTENTION = {
    "decode, 8B": AttentionCase((1,) * 5, (1, 31, 257, 1000, 4097)),
    "prefill, 8B": AttentionCase((300, 1, 77), (300, 900, 1500)),
    "window, soft cap, dim 64": AttentionCase(
        (100, 1), (400, 700), 14, 2, 64, 16, torch.float16, 128, 30.0
    ),
    "one KV head, dim 256": AttentionCase((40, 1), (90, 300), 8, 1, 256, 64),
    "decode, eight-bit cache": AttentionCase((1,) * 3, (31, 1000, 4097), is_fp8=True),
    "prefill, eight-bit cache": AttentionCase((300, 1, 77), (300, 900, 1500), is_fp8=True),
    "odd group and dim": AttentionCase((33, 1, 1), (64, 5, 600), 21, 3, 80, 8),
}


QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8")


def worst(out: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    scale = expected.float().abs().max().clamp(min=1e-6)
    return float((out.float() - expected.float()).abs().max() / scale)


def attention_error(case: AttentionCase, is_invariant: bool) -> float:
    batch = case.batch("cuda")
    set_batch_invariant(is_invariant)
    try:
        scale = case.head_dim**-0.5
        out = paged_attention(*batch, scale, case.window, case.softcap)
    finally:
        set_batch_invariant(False)
    return worst(out, exact_attention(case, batch))


def invariance_error() -> float:
    """0 if a query and a row of a product have the same bits alone and in company."""
    case = AttentionCase((64,), (900,))
    query, k_cache, v_cache, tables, starts, contexts = case.batch("cuda")
    weight = torch.randn(1000, 512, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(300, 512, device="cuda", dtype=torch.bfloat16)
    set_batch_invariant(True)
    try:
        chunk = paged_attention(query, k_cache, v_cache, tables, starts, contexts, 0.1)
        one = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
        errors = []
        for row in (0, 30, 63):
            context = torch.tensor([837 + row], dtype=torch.int32, device="cuda")
            alone = paged_attention(
                query[row : row + 1], k_cache, v_cache, tables, one, context, 0.1
            )
            errors.append(float((alone.float() - chunk[row : row + 1].float()).abs().max()))
        packed = pack(weight)
        together = linear(x, packed)
        for count in (1, 17, 128):
            errors.append(float((linear(x[:count], packed) - together[:count]).abs().max()))
    finally:
        set_batch_invariant(False)
    return max(errors)


def quantized_error(quantization: Quantization, is_invariant: bool) -> float:
    """Against the product with the rounded weight, for few rows and many."""
    weight = torch.randn(1000, 520, device="cuda", dtype=torch.bfloat16)
    numbers, scales = quantize(weight, quantization)
    stored = numbers.float() * scales[:, None]
    packed = pack(weight, quantization=quantization)
    errors = []
    set_batch_invariant(is_invariant)
    try:
        for rows in (1, 64, 300):
            x = torch.randn(rows, 520, device="cuda", dtype=torch.bfloat16)
            errors.append(worst(linear(x, packed), x.float() @ stored.T))
    finally:
        set_batch_invariant(False)
    return max(errors)


def rows_error() -> float:
    x, residual = (torch.randn(33, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    weight = torch.randn(4096, device="cuda", dtype=torch.bfloat16)
    out, total = add_rms_norm(x, residual, weight, 1e-5)
    gate_up = torch.randn(33, 2 * 14336, device="cuda", dtype=torch.bfloat16)
    return max(
        worst(out, rms_norm_torch(x + residual, weight, 1e-5)),
        worst(total, x + residual),
        worst(silu_mul(gate_up), silu_mul_torch(gate_up)),
    )


def rope_error(dtype: torch.dtype = torch.bfloat16) -> float:
    """dtype: of the cache."""
    qkv = torch.randn(9, 48, 128, device="cuda", dtype=torch.bfloat16)
    cache = torch.zeros(20, 3, 2, 8, 16, 128, device="cuda", dtype=dtype)
    expected_cache = cache.clone()
    positions = torch.arange(100, 109, device="cuda")
    slots = torch.arange(40, 49, device="cuda")
    slots[3] = -1
    angles = torch.outer(torch.arange(200.0), 0.9 ** torch.arange(64)).cuda()
    tables = (angles.cos(), angles.sin(), positions)
    plain = qkv.clone()
    apply_rope_torch(plain[:, :32], plain[:, 32:40], *tables)
    caches = expected_cache[:, 1, 0], expected_cache[:, 1, 1]
    store_kv_torch(plain[:, 32:40], plain[:, 40:], *caches, slots)
    q, k, v = torch.split(qkv, [32, 8, 8], dim=1)
    rope_and_store(q, k, v, *tables, cache[:, 1, 0], cache[:, 1, 1], slots)
    return max(worst(q, plain[:, :32]), worst(cache, expected_cache))


def noise_error() -> float:
    """0: the noise has the same bits everywhere, also as computed on the CPU."""
    seeds = torch.tensor([0, -1, 2**63 - 1, 12345])
    positions = torch.tensor([0, 77, 2**40 + 5, 131071])
    here = gumbel(seeds.cuda(), positions.cuda(), 128256).cpu()
    return float((here - gumbel_torch(seeds, positions, 128256)).abs().max())


def cut_error() -> float:
    """Share of tokens that the cut keeps and sorting would not, or the reverse."""
    x = torch.randn(64, 128256, device="cuda") * 3
    top_k = torch.randint(0, 200, (64,), device="cuda")
    top_p = torch.rand(64, device="cuda")
    cut = cut_off_triton(x, torch.zeros(64, device="cuda"), top_k, top_p)
    ordered = x.sort(dim=-1, descending=True).values
    wrong = 0
    for row in range(64):
        k = int(top_k[row]) or x.shape[1]
        kept = ordered[row, :k].double().softmax(-1).cumsum(0)
        last = ordered[row, int((kept < float(top_p[row])).sum().clamp(max=k - 1))]
        wrong += abs(int((x[row] >= cut[row]).sum()) - int((x[row] >= last).sum()))
    return wrong / x.numel()


def checks() -> dict[str, tuple[Callable[[], float], float]]:
    """By name: the check, and the largest error that is fine."""
    found: dict[str, tuple[Callable[[], float], float]] = {}
    for name, case in ATTENTION.items():
        for mode, is_invariant in (("", False), (", invariant", True)):
            found[f"attention {name}{mode}"] = (
                partial(attention_error, case, is_invariant),
                0.02,
            )
    found["same bits alone and in a batch"] = (invariance_error, 0.0)
    found["norm, activation"] = (rows_error, 0.01)
    found["rope and KV store"] = (rope_error, 0.01)
    found["rope and KV store, eight-bit cache"] = (partial(rope_error, FP8), 0.1)
    for kind in QUANTIZATIONS:
        for mode, is_invariant in (("", False), (", invariant", True)):
            found[f"{kind} product{mode}"] = (partial(quantized_error, kind, is_invariant), 0.01)
    found["noise equals the CPU's"] = (noise_error, 0.0)
    found["top-k and top-p cut"] = (cut_error, 1e-5)
    return found
