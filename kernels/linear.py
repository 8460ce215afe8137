"""Matrix product with weights: `linear` over a weight packed once.

Row-invariant: an output row depends on its own input row alone, bit for bit, whatever M is. So
every face adds up a row in one fixed order; none picks another sum by the number of rows. A weight
may be quantized as it is packed: activations keep their type, sums stay float32. It knows nothing
of layers or of which weights belong together; fusing projections is the model's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kernels.gpu.choice import triton_serves
from kernels.native_library import DTYPE_CODES, library, library_for
from kernels.quantize import Quantization, quantize

_ROWS = 16  # rows per call into the BLAS; fewer than 8 take other paths there, with other sums
_ALIGN = 64  # features are padded to this, so that no remainder loop sees some rows only
_WIDE_CHUNK = 4096  # weight rows widened to float32 at a time


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in the order in which the active face reads it.

    On a CPU it is a copy, so the caller may drop the original; on a GPU it is the weight itself.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype  # of what it is multiplied with
    data: Tensor  # native: panels as bytes; torch: [out, in], padded with zeros to multiples of 64
    bias: Tensor | None  # [out] float32, as long as the padded rows in torch
    face: Literal["native", "torch", "gpu"]
    scales: Tensor | None = None  # quantized: [out] float32, as long as the bias; else None


def pack(
    weight: Tensor, bias: Tensor | None = None, quantization: Quantization | None = None
) -> PackedWeight:
    """weight: [out, in], bias: [out]; bfloat16, float16 or float32.

    quantization:  8 bits a number and one scale per output (kernels/quantize.py)
    """
    if triton_serves(weight):
        return _pack_gpu(weight.detach(), bias, quantization)
    native = library_for(weight)
    if native is None or quantization == "fp8":  # the native kernels know no such numbers
        return pack_torch(weight, bias, quantization)
    rows, cols = weight.shape
    code, dtype, scales = DTYPE_CODES[weight.dtype], weight.dtype, None
    if quantization is not None:
        weight, scales = quantize(weight, quantization)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    is_quantized = scales is not None
    data = torch.empty(native.xpyd_linear_bytes(code, is_quantized, rows, cols), dtype=torch.uint8)
    source = (weight.data_ptr(), weight.stride(0), rows, cols)
    native.xpyd_linear_pack(code, is_quantized, *source, data.data_ptr())
    wide = None if bias is None else bias.detach().to(torch.float32, copy=True).contiguous()
    return PackedWeight(cols, rows, dtype, data, wide, "native", scales)


def _pack_gpu(
    weight: Tensor, bias: Tensor | None, quantization: Quantization | None
) -> PackedWeight:
    (rows, cols), dtype, scales = weight.shape, weight.dtype, None
    if quantization is not None:
        weight, scales = quantize(weight, quantization)
    wide = None if bias is None else bias.detach().float()
    return PackedWeight(cols, rows, dtype, weight.contiguous(), wide, "gpu", scales)


def linear(x: Tensor, packed: PackedWeight, out_dtype: torch.dtype | None = None) -> Tensor:
    """x: [..., in] in the weight's dtype → [..., out]; sums in float32, rounded once at the end.

    out_dtype: of the result: x's dtype by default, or float32, which skips the rounding (logits).
    """
    if x.dtype != packed.dtype or x.shape[-1] != packed.in_features:
        raise ValueError(
            f"linear: x is {x.dtype} [..., {x.shape[-1]}], "
            f"the weight wants {packed.dtype} [..., {packed.in_features}]"
        )
    if out_dtype not in (None, x.dtype, torch.float32):
        raise ValueError(f"linear: result in {out_dtype} from {x.dtype}")
    rows = x.reshape(-1, packed.in_features)
    out = _FACES[packed.face](rows, packed, out_dtype or x.dtype)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], packed.out_features)


def _linear_gpu(x: Tensor, packed: PackedWeight, out_dtype: torch.dtype) -> Tensor:
    from kernels.gpu.linear import linear_gpu

    return linear_gpu(x, packed.data, packed.scales, packed.bias, out_dtype)


def _linear_native(x: Tensor, packed: PackedWeight, out_dtype: torch.dtype) -> Tensor:
    native = library()
    assert native is not None
    x = x.contiguous()
    out = torch.empty(x.shape[0], packed.out_features, dtype=out_dtype)
    native.xpyd_linear(
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[out_dtype],
        x.data_ptr(),
        x.shape[0],
        packed.in_features,
        packed.out_features,
        packed.data.data_ptr(),
        None if packed.scales is None else packed.scales.data_ptr(),
        None if packed.bias is None else packed.bias.data_ptr(),
        out.data_ptr(),
    )
    return out


def pack_torch(
    weight: Tensor, bias: Tensor | None = None, quantization: Quantization | None = None
) -> PackedWeight:
    (rows, cols), dtype, scales = weight.shape, weight.dtype, None
    if quantization is not None:
        weight, scales = quantize(weight, quantization)
    data = weight.new_zeros(-(-rows // _ALIGN) * _ALIGN, -(-cols // _ALIGN) * _ALIGN)
    data[:rows, :cols] = weight.detach()

    def wide(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return functional.pad(values.detach().float(), (0, data.shape[0] - rows))

    return PackedWeight(cols, rows, dtype, data, wide(bias), "torch", wide(scales))


def linear_torch(x: Tensor, packed: PackedWeight, out_dtype: torch.dtype) -> Tensor:
    """The same on [rows, in] in plain torch, any device: tiles of exactly `_ROWS` rows."""
    count = x.shape[0]
    tiled = x.new_zeros(-(-count // _ROWS) * _ROWS, packed.data.shape[1])
    tiled[:count, : packed.in_features] = x
    is_wide = out_dtype != x.dtype or packed.scales is not None
    out = _wide_linear(tiled.float(), packed) if is_wide else _plain_linear(tiled, packed)
    return out[:count, : packed.out_features].to(out_dtype).contiguous()


def _plain_linear(tiled: Tensor, packed: PackedWeight) -> Tensor:
    bias = None if packed.bias is None else packed.bias.to(tiled.dtype)
    out = tiled.new_empty(tiled.shape[0], packed.data.shape[0])
    for i in range(0, tiled.shape[0], _ROWS):
        out[i : i + _ROWS] = functional.linear(tiled[i : i + _ROWS], packed.data, bias)
    return out


def _wide_linear(tiled: Tensor, packed: PackedWeight) -> Tensor:
    """float32 rows, float32 result; the weight is widened a part at a time."""
    out = tiled.new_empty(tiled.shape[0], packed.data.shape[0])
    for start in range(0, packed.data.shape[0], _WIDE_CHUNK):
        weight = packed.data[start : start + _WIDE_CHUNK].float()
        for i in range(0, tiled.shape[0], _ROWS):
            part = functional.linear(tiled[i : i + _ROWS], weight)
            out[i : i + _ROWS, start : start + _WIDE_CHUNK] = part
    if packed.scales is not None:
        out *= packed.scales
    return out if packed.bias is None else out.add_(packed.bias)


_FACES = {"native": _linear_native, "torch": linear_torch, "gpu": _linear_gpu}
