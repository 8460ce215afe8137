"""Kernels alone, as shares of what this GPU can do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.attention_cases import AttentionCase
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.timing import seconds
from kernels.activation import silu_mul
from kernels.attention import paged_attention
from kernels.gpu.choice import set_batch_invariant
from kernels.gpu.truncation import cut_off_triton
from kernels.linear import linear, pack
from kernels.norm import add_rms_norm

DECODE = {
    "1 x 8k": AttentionCase((1,), (8192,)),
    "8 x 1k": AttentionCase((1,) * 8, (1024,) * 8),
    "64 x 1k": AttentionCase((1,) * 64, (1024,) * 64),
    "256 x 1k": AttentionCase((1,) * 256, (1024,) * 256),
    "64 x 1k, eight-bit cache": AttentionCase((1,) * 64, (1024,) * 64, is_fp8=True),
    "16 x 16k": AttentionCase((1,) * 16, (16384,) * 16),
}
PREFILL = {
    "2048": AttentionCase((2048,), (2048,)),
    "512 on 8k": AttentionCase((512,), (8192,)),
    "8192": AttentionCase((8192,), (8192,)),
    "8 x 512": AttentionCase((512,) * 8, (512,) * 8),
}


def attention_seconds(case: AttentionCase) -> float:
    batch = case.batch("cuda")
    return seconds(
        lambda: paged_attention(
            *batch,
            case.head_dim**-0.5,
            max_query_len=max(case.lens),
            max_context_len=max(case.contexts),
        )
    )


def attention_shares(ceilings: Ceilings) -> Iterator[tuple[str, float, float]]:
    """(name, seconds, share of bandwidth or of the GEMM peak)"""
    for mode, is_invariant in (("", False), (", invariant", True)):
        set_batch_invariant(is_invariant)
        try:
            for name, case in DECODE.items():
                took = attention_seconds(case)
                share = case.kv_bytes / ceilings.read_bytes_s / took
                yield f"decode {name}{mode}", took, share
            for name, case in PREFILL.items():
                took = attention_seconds(case)
                yield f"prefill {name}{mode}", took, case.flop / ceilings.gemm_flop_s / took
        finally:
            set_batch_invariant(False)


def other_shares(ceilings: Ceilings) -> Iterator[tuple[str, float, float]]:
    x = torch.randn(2048, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, device="cuda", dtype=torch.bfloat16)
    took = seconds(lambda: add_rms_norm(x, x, weight, 1e-5))
    yield "add and norm, 2048 x 4096", took, 4 * x.numel() * 2 / ceilings.copy_bytes_s / took
    gate_up = torch.randn(2048, 2 * 14336, device="cuda", dtype=torch.bfloat16)
    took = seconds(lambda: silu_mul(gate_up))
    yield "silu and mul, 2048 x 14336", took, gate_up.numel() * 3 / ceilings.copy_bytes_s / took
    matrix = pack(torch.randn(14336, 4096, device="cuda", dtype=torch.bfloat16))
    for mode, is_invariant in (("", False), (", invariant", True)):
        set_batch_invariant(is_invariant)
        try:
            for rows in (1, 64, 2048):
                part = x[:rows]
                took = seconds(partial(linear, part, matrix))
                flop = 2 * rows * 14336 * 4096
                floor = max(flop / ceilings.gemm_flop_s, 14336 * 4096 * 2 / ceilings.read_bytes_s)
                yield f"linear, {rows} rows{mode}", took, floor / took
        finally:
            set_batch_invariant(False)
    logits = torch.randn(64, 128256, device="cuda")
    off = torch.zeros(64, device="cuda")
    top_k = torch.full((64,), 50, device="cuda")
    top_p = torch.full((64,), 0.9, device="cuda")
    took = seconds(lambda: cut_off_triton(logits, off, top_k, top_p))
    yield "top-k and top-p, 64 x 128k", took, logits.numel() * 4 / ceilings.read_bytes_s / took
