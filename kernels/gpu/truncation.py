"""Where min_p, top_k and top_p cut a row of logits off, without sorting it.

Reference and meaning: common/engine/truncation.py. A row's logits are read as ordered 32-bit keys;
the k-th largest, and the edge of the nucleus, are found bit by bit from the top: 32 passes over a
row that lies in the cache by then. A row's cut depends on that row alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _key(x):
    """An unsigned number that is ordered as the float is."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _value(key):
    bits = tl.where((key >> 31) != 0, key & 0x7FFFFFFF, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _cut_off(
    x_ptr,
    min_p_ptr,
    top_k_ptr,
    top_p_ptr,
    out_ptr,
    stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    peak = tl.full([], float("-inf"), tl.float32)
    for start in tl.range(0, vocab_size, BLOCK):
        token = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + token, mask=token < vocab_size, other=float("-inf"))
        peak = tl.maximum(peak, tl.max(x, axis=0))
    min_p = tl.load(min_p_ptr + row)
    cut = tl.where(min_p > 0, peak + tl.log(tl.maximum(min_p, 1e-30)), float("-inf"))
    if (top_k > 0) & (top_k <= vocab_size):
        found = tl.zeros([], tl.uint32)
        bit = found + 0x80000000
        for _ in tl.range(0, 32):
            tried = found | bit
            bit = bit >> 1
            count = tl.zeros([], tl.int64)
            for start in tl.range(0, vocab_size, BLOCK):
                token = start + tl.arange(0, BLOCK)
                inside = token < vocab_size
                x = tl.load(x_ptr + token, mask=inside, other=float("-inf"))
                count += tl.sum(((_key(x) >= tried) & inside).to(tl.int32), axis=0)
            found = tl.where(count >= top_k, tried, found)
        cut = tl.maximum(cut, _value(found))
    if top_p < 1:
        mass = tl.zeros([], tl.float32)
        for start in tl.range(0, vocab_size, BLOCK):
            token = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + token, mask=token < vocab_size, other=float("-inf"))
            mass += tl.sum(tl.where(x >= cut, tl.exp(x - peak), 0.0), axis=0)
        found = tl.zeros([], tl.uint32)
        bit = found + 0x80000000
        for _ in tl.range(0, 32):
            tried = found | bit
            bit = bit >> 1
            above = tl.zeros([], tl.float32)
            for start in tl.range(0, vocab_size, BLOCK):
                token = start + tl.arange(0, BLOCK)
                inside = token < vocab_size
                x = tl.load(x_ptr + token, mask=inside, other=float("-inf"))
                is_above = (_key(x) >= tried) & (x >= cut) & inside
                above += tl.sum(tl.where(is_above, tl.exp(x - peak), 0.0), axis=0)
            found = tl.where(above >= top_p * mass, tried, found)
        cut = tl.maximum(cut, _value(found))
    tl.store(out_ptr + row, cut)


def cut_off_triton(x: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """See `common.engine.truncation.cut_off`."""
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(len(x), dtype=torch.float32, device=x.device)
    if len(x):
        _cut_off[(len(x),)](
            x, min_p, top_k, top_p, out, x.stride(0), x.shape[1], BLOCK=_BLOCK, num_warps=8
        )
    return out
