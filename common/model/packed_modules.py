"""Puts our row-invariant `linear` in the place of every matrix product with weights in a model.

Stock matrix products add up in an order that depends on the number of rows, so a token's logits
would depend on who shares its batch. Weights are packed one at a time and the originals dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from kernels.linear import PackedWeight, linear, pack
from kernels.quantize import Quantization


class PackedLinear(nn.Module):
    """`nn.Linear` over a packed weight. `out_dtype`: of the result, x's dtype by default."""

    def __init__(self, packed: PackedWeight, out_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._packed = packed
        self._out_dtype = out_dtype

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self._packed, self._out_dtype)


class BareWeight:
    """A packed weight [out, in] that a module multiplies with by itself, as expert routers do.

    It stands where the parameter stood and answers `functional.linear`; anything else fails.
    """

    def __init__(self, weight: Tensor, quantization: Quantization | None = None) -> None:
        self._packed = pack(weight, quantization=quantization)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Tensor:
        if function is not functional.linear or kwargs or len(args) > 2:
            raise TypeError(f"a packed weight cannot take part in {function}")
        x, weight = args
        return linear(x, weight._packed)


class BareStack:
    """Packed weights [experts, out, in]; indexing gives one expert's."""

    def __init__(self, weights: Tensor, quantization: Quantization | None) -> None:
        self._experts = [BareWeight(weight, quantization) for weight in weights]

    def __getitem__(self, index: Tensor | int) -> BareWeight:
        return self._experts[int(index)]


def pack_modules(
    model: nn.Module, head: nn.Module, quantization: Quantization | None = None
) -> None:
    """Replace, in place, every weight that is multiplied with; `head` answers in float32.

    quantization:  of layers, head and experts; a router stays as it is, being small and a choice
    What remains (embeddings, norms) is copied: it may lie in a mapped file that others can change.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                out_dtype = torch.float32 if child is head else None
                packed = pack(child.weight, child.bias, quantization)
                setattr(module, name, PackedLinear(packed, out_dtype))
            elif isinstance(child, Conv1D):
                packed = pack(child.weight.t(), child.bias, quantization)
                setattr(module, name, PackedLinear(packed))
            elif not isinstance(child, nn.Embedding) and "Norm" not in type(child).__name__:
                _pack_bare(child, quantization)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _pack_bare(module: nn.Module, quantization: Quantization | None) -> None:
    for name, weight in list(module.named_parameters(recurse=False)):
        if weight.dim() < 2:
            continue
        delattr(module, name)
        is_router = weight.dim() == 2
        packed = BareWeight(weight) if is_router else BareStack(weight, quantization)
        object.__setattr__(module, name, packed)
