"""Matrix product with weights on a GPU: cuBLAS, or in batch-invariant mode a Triton kernel.

The kernel adds up every output element over the inputs in one fixed order and in one tile shape,
however many rows there are; cuBLAS chooses both by the number of rows.
Reference: kernels/linear.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.gpu.choice import is_batch_invariant

ROWS, OUTPUTS, INPUTS = 64, 128, 64
_GROUP = 8  # row tiles whose weights are reused from the cache
_NUM_WARPS, _NUM_STAGES = 4, 4


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    x_stride,
    weight_stride,
    out_stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of out = x @ weight.T + bias; bias is float32, added before the one rounding."""
    row_tiles, output_tiles = tl.cdiv(num_rows, ROWS), tl.cdiv(num_outputs, OUTPUTS)
    tile = tl.program_id(0)
    per_group = GROUP * output_tiles
    first = (tile // per_group) * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + (tile % per_group) % size
    output_tile = (tile % per_group) // size
    row = row_tile * ROWS + tl.arange(0, ROWS)
    output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    # Beyond the edge the first ones are read again: nothing of theirs is stored.
    x_rows = x_ptr + tl.where(row < num_rows, row, 0).to(tl.int64)[:, None] * x_stride
    weights = tl.where(output < num_outputs, output, 0).to(tl.int64)[:, None] * weight_stride
    weights = weight_ptr + weights
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in tl.range(0, num_inputs, INPUTS):
        inside = (start + column < num_inputs)[None, :]
        x = tl.load(x_rows + start + column[None, :], mask=inside, other=0.0)
        weight = tl.load(weights + start + column[None, :], mask=inside, other=0.0)
        sums = tl.dot(x, tl.trans(weight), acc=sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + output, mask=output < num_outputs, other=0.0)[None, :]
    to = out_ptr + row.to(tl.int64)[:, None] * out_stride + output[None, :]
    mask = (row < num_rows)[:, None] & (output < num_outputs)[None, :]
    tl.store(to, sums.to(out_ptr.dtype.element_ty), mask=mask)


def linear_gpu(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """x: [rows, in], weight: [out, in], bias: [out] float32 → [rows, out]."""
    if is_batch_invariant():
        return linear_triton(x, weight, bias, out_dtype)
    if out_dtype == x.dtype:
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    out = torch.mm(x, weight.t(), out_dtype=out_dtype)
    return out if bias is None else out + bias


def linear_triton(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    num_rows, num_outputs = x.shape[0], weight.shape[0]
    out = torch.empty(num_rows, num_outputs, dtype=out_dtype, device=x.device)
    if num_rows:
        _linear[(triton.cdiv(num_rows, ROWS) * triton.cdiv(num_outputs, OUTPUTS),)](
            x,
            weight,
            bias,
            out,
            num_rows,
            num_outputs,
            x.shape[1],
            x.stride(0),
            weight.stride(0),
            out.stride(0),
            HAS_BIAS=bias is not None,
            ROWS=ROWS,
            OUTPUTS=OUTPUTS,
            INPUTS=INPUTS,
            GROUP=_GROUP,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=_NUM_WARPS,
            num_stages=_NUM_STAGES,
        )
    return out
