"""Sampling noise in Triton: the same bits as every other face. Definition: kernels/noise.py.

Compiled without fusing multiplications into additions, as the definition rounds each alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _philox(token, seed, position):
    """The 32 random bits of each token id; seed and position are int64 scalars or like token."""
    c0 = (token >> 2).to(tl.uint32)
    c1 = tl.zeros_like(c0)
    c2 = c1 + (position & 0xFFFFFFFF).to(tl.uint32)
    c3 = c1 + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    k0 = c1 + (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = c1 + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    m0 = c1 + 0xD2511F53
    m1 = c1 + 0xCD9E8D57
    step0 = c1 + 0x9E3779B9
    step1 = c1 + 0xBB67AE85
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(m0, c0), m0 * c0
        high1, low1 = tl.umulhi(m1, c2), m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + step0, k1 + step1
    which = token & 3
    return tl.where(which == 0, c0, tl.where(which == 1, c1, tl.where(which == 2, c2, c3)))


@triton.jit
def _split(x):
    """x = 2^e (1 + f) with 1 + f in [√½, √2)."""
    bits = x.to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    mantissa = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    return mantissa - 1.0, ((bits >> 23) - 127).to(tl.float32)


@triton.jit
def _log(f, e):
    """log(2^e (1 + f)); the polynomial is that of kernels/noise.py."""
    square = f * f
    y = f * 7.0376836292e-2 + -1.1514610310e-1
    y = y * f + 1.1676998740e-1
    y = y * f + -1.2420140846e-1
    y = y * f + 1.4249322787e-1
    y = y * f + -1.6668057665e-1
    y = y * f + 2.0000714765e-1
    y = y * f + -2.4999993993e-1
    y = y * f + 3.3333331174e-1
    y = y * f * square + e * -2.12194440e-4
    y = y - square * 0.5
    return (f + y) + e * 0.693359375


@triton.jit
def gumbel_noise(token, seed, position):
    """Gumbel noise of each token id, for use inside other kernels."""
    word = _philox(token, seed, position)
    is_upper = word >= 0x80000000
    low = tl.where(is_upper, word ^ 0xFFFFFFFF, word)
    x = (low.to(tl.int32).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    f, e = _split(x)
    beyond = x > 0.2928932309150696
    f = tl.where(is_upper, tl.where(beyond, 1.0 - (x + x), -x), f)
    e = tl.where(is_upper, tl.where(beyond, -1.0, 0.0), e)
    f, e = _split(-_log(f, e))
    return -_log(f, e)


@triton.jit
def _gumbel(seeds_ptr, positions_ptr, out_ptr, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    noise = gumbel_noise(token, tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
    at = out_ptr + row.to(tl.int64) * vocab_size + token
    tl.store(at, noise, mask=token < vocab_size)


@triton.jit(do_not_specialize=["num_each", "count"])
def _gumbel_at(seeds_ptr, positions_ptr, tokens_ptr, out_ptr, num_each, count, BLOCK: tl.constexpr):
    """Entry i belongs to row i // num_each."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row = i // num_each
    seed = tl.load(seeds_ptr + row, mask=inside, other=0)
    position = tl.load(positions_ptr + row, mask=inside, other=0)
    token = tl.load(tokens_ptr + i, mask=inside, other=0).to(tl.int32)
    tl.store(out_ptr + i, gumbel_noise(token, seed, position), mask=inside)


def gumbel_triton(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """[rows, vocab_size] float32."""
    out = torch.empty(len(seeds), vocab_size, device=seeds.device)
    if out.numel():
        grid = (len(seeds), triton.cdiv(vocab_size, _BLOCK))
        _gumbel[grid](
            seeds.contiguous(),
            positions.contiguous(),
            out,
            vocab_size,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
    return out


def gumbel_at_triton(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """token_ids: [rows, n] → [rows, n] float32."""
    out = torch.empty(token_ids.shape, device=seeds.device)
    count = token_ids.numel()
    if count:
        _gumbel_at[(triton.cdiv(count, 256),)](
            seeds.contiguous(),
            positions.contiguous(),
            token_ids.contiguous(),
            out,
            token_ids.shape[1],
            count,
            BLOCK=256,
            enable_fp_fusion=False,
        )
    return out
