"""Matrix product with weights on a GPU: cuBLAS, or a Triton kernel of ours.

Ours runs in batch-invariant mode, where it adds up every output element over the inputs in one
fixed order and in one tile shape, however many rows there are (cuBLAS chooses both by the number of
rows); and with quantized weights as long as there are few rows, where reading the weights is what
takes the time: they are widened on the way to the tensor cores. For many rows the whole weight is
widened first, which cuBLAS more than makes up for.
Reference: kernels/linear.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.gpu.choice import is_batch_invariant
from kernels.gpu.tuning import Case, Tuner, bucket, chosen

FEW_ROWS = 128  # up to here quantized weights are widened tile by tile
_GROUP = 8  # row tiles whose weights are reused from the cache


@dataclass(frozen=True, slots=True)
class ProductTile:
    """How the kernel is compiled, and in how many parts the inputs are added up."""

    rows: int
    outputs: int
    inputs: int
    num_parts: int
    num_warps: int
    num_stages: int


INVARIANT = ProductTile(rows=64, outputs=128, inputs=64, num_parts=1, num_warps=4, num_stages=4)
NARROW = ProductTile(rows=16, outputs=64, inputs=128, num_parts=1, num_warps=4, num_stages=4)
NARROW_TILES = (
    NARROW,
    ProductTile(rows=16, outputs=32, inputs=256, num_parts=1, num_warps=4, num_stages=3),
    ProductTile(rows=16, outputs=64, inputs=128, num_parts=4, num_warps=4, num_stages=4),
    ProductTile(rows=16, outputs=128, inputs=128, num_parts=4, num_warps=4, num_stages=3),
    ProductTile(rows=32, outputs=64, inputs=128, num_parts=2, num_warps=4, num_stages=3),
    ProductTile(rows=64, outputs=64, inputs=128, num_parts=2, num_warps=4, num_stages=3),
    ProductTile(rows=128, outputs=64, inputs=64, num_parts=1, num_warps=8, num_stages=3),
)


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    x_ptr,
    weight_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    part_inputs,
    x_stride,
    weight_stride,
    out_stride,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of out = x @ (weight * scale).T + bias; scale and bias are float32, applied before
    the one rounding. Program (·, p) adds up the p-th part of the inputs only, into out[p]."""
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
    begin = tl.program_id(1) * part_inputs
    end = tl.minimum(begin + part_inputs, num_inputs)
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in tl.range(begin, end, INPUTS):
        inside = (start + column < end)[None, :]
        x = tl.load(x_rows + start + column[None, :], mask=inside, other=0.0)
        weight = tl.load(weights + start + column[None, :], mask=inside, other=0.0)
        weight = weight.to(x.dtype)
        sums = tl.dot(x, tl.trans(weight), acc=sums, input_precision=PRECISION)
    if HAS_SCALES:
        sums *= tl.load(scale_ptr + output, mask=output < num_outputs, other=0.0)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias_ptr + output, mask=output < num_outputs, other=0.0)[None, :]
    out_row = tl.program_id(1).to(tl.int64) * num_rows + row.to(tl.int64)
    to = out_ptr + out_row[:, None] * out_stride + output[None, :]
    mask = (row < num_rows)[:, None] & (output < num_outputs)[None, :]
    tl.store(to, sums.to(out_ptr.dtype.element_ty), mask=mask)


def linear_gpu(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """x: [rows, in], weight: [out, in], scales and bias: [out] float32 → [rows, out].

    scales: of a quantized weight (kernels/quantize.py)
    """
    if is_batch_invariant():
        return linear_triton(x, weight, scales, bias, out_dtype, INVARIANT)
    if scales is not None:
        if len(x) <= FEW_ROWS:
            tile = chosen("quantized linear", _case(x, weight), NARROW)
            return linear_triton(x, weight, scales, bias, out_dtype, tile)
        return _widened(x, weight, scales, bias, out_dtype)
    if out_dtype == x.dtype:
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    out = torch.mm(x, weight.t(), out_dtype=out_dtype)
    return out if bias is None else out + bias


def _widened(
    x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """The numbers of a quantized weight are exact in x's dtype; their scales come after the sum."""
    out = torch.mm(x, weight.to(x.dtype).t(), out_dtype=torch.float32).mul_(scales)
    return (out if bias is None else out.add_(bias)).to(out_dtype)


def linear_triton(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    tile: ProductTile,
) -> Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    (num_rows, num_inputs), num_outputs, parts = x.shape, weight.shape[0], tile.num_parts
    is_whole = parts == 1
    shape = (num_rows, num_outputs) if is_whole else (parts, num_rows, num_outputs)
    out = torch.empty(shape, dtype=out_dtype if is_whole else torch.float32, device=x.device)
    if num_rows:
        tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
        part_inputs = triton.cdiv(triton.cdiv(num_inputs, parts), tile.inputs) * tile.inputs
        _linear[(tiles, parts)](
            x,
            weight,
            scales,
            bias if is_whole else None,
            out,
            num_rows,
            num_outputs,
            num_inputs,
            part_inputs,
            x.stride(0),
            weight.stride(0),
            out.stride(-2),
            HAS_SCALES=scales is not None,
            HAS_BIAS=bias is not None and is_whole,
            ROWS=tile.rows,
            OUTPUTS=tile.outputs,
            INPUTS=tile.inputs,
            GROUP=_GROUP,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    if is_whole:
        return out
    total = out.sum(0)
    return (total if bias is None else total.add_(bias)).to(out_dtype)


def tune_linear(tuner: Tuner, x: Tensor, weight: Tensor, scales: Tensor) -> None:
    """Choose the tile for as many rows as x has, at most FEW_ROWS, of this quantized weight."""
    assert len(x) <= FEW_ROWS, "more rows are cuBLAS's"
    tuner.tune(
        "quantized linear",
        _case(x, weight),
        NARROW_TILES,
        lambda tile: linear_triton(x, weight, scales, None, x.dtype, tile),
    )


def _case(x: Tensor, weight: Tensor) -> Case:
    return (f"{x.dtype} {weight.dtype}", *weight.shape, bucket(len(x)))
