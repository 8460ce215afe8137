"""One LoRA adapter in memory: for each fused projection of each layer, what it adds to the output.

    out[rows] += expand(shrink(x[rows])), per module of the projection; scale is in `expand`

The products go through `kernels.linear`, so a row's result depends on the row alone. Source: LoRA,
Hu et al. 2021, arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from common.errors import ConfigError
from common.model.lora.tensors import Module, Pair, max_elements, modules_of
from common.model.spec import LlamaShape, ModelSpec
from kernels.linear import PackedWeight, linear, pack

_SERIAL = 32767  # elements; for more, torch wakes threads, which then dispute our kernels' cores


@dataclass(frozen=True, slots=True)
class Part:
    """What one module adds. Its inputs are `ranks` of what the projection's `shrink` gives."""

    ranks: slice
    outputs: slice  # of the fused projection
    expand: PackedWeight  # rank → the module's outputs


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter adds to one projection: of its modules, the first matrices are one."""

    shrink: PackedWeight  # the projection's inputs → ranks of all parts
    parts: tuple[Part, ...]

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add in place. x: [rows, inputs], out: [rows, outputs].

        The sum is made in float32, rounded once.
        """
        small = linear(x, self.shrink)
        for part in self.parts:
            added = linear(small[:, part.ranks], part.expand, out_dtype=torch.float32)
            _add(out[:, part.outputs], added)


@dataclass(frozen=True, slots=True)
class Adapter:
    """`digest` is of what it computes: two adapters with one digest are the same adapter."""

    digest: str
    rank: int
    deltas: Mapping[tuple[int, str], Delta]  # by layer and projection

    def __repr__(self) -> str:
        return f"Adapter({self.digest[:12]} rank={self.rank} projections={len(self.deltas)})"


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Neighbouring rows of one batch that run with one adapter."""

    adapter: Adapter
    rows: slice


def project(
    x: Tensor, weight: PackedWeight, adapters: tuple[AdapterRows, ...], layer: int, projection: str
) -> Tensor:
    """`linear`, and what the adapters of this step add to their rows. No two share a row."""
    out = linear(x, weight)
    for group in adapters:
        delta = group.adapter.deltas.get((layer, projection))
        if delta is not None:
            delta.add_to(out[group.rows], x[group.rows])
    return out


def build_adapter(
    digest: str,
    pairs: Mapping[tuple[int, str], Pair],
    scale: float,
    spec: ModelSpec,
    shape: LlamaShape,
    device: torch.device,
) -> Adapter:
    """Raises ConfigError if a weight is not finite in the model's dtype."""
    modules, dtype = modules_of(spec, shape), getattr(torch, spec.dtype)

    def place(key: tuple[int, str]) -> tuple[int, str]:
        return key[0], modules[key[1]].projection

    ordered = sorted(pairs, key=lambda key: (*place(key), modules[key[1]].first))
    deltas = {}
    for where, keys in groupby(ordered, place):
        found = [(modules[name], pairs[layer, name]) for layer, name in keys]
        deltas[where] = _delta(found, scale, dtype, device)
    rank = next(iter(pairs.values()))[0].shape[0]
    return Adapter(digest, rank, deltas)


def max_adapter_bytes(spec: ModelSpec, shape: LlamaShape, rank: int) -> int:
    """Of one adapter in memory, padding left out."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return max_elements(spec, shape, rank) * dtype.itemsize


def _add(out: Tensor, added: Tensor) -> None:
    """In place, out: [rows, outputs] of any dtype, added: float32."""
    step = max(1, _SERIAL // out.shape[1]) if out.device.type == "cpu" else len(out) or 1
    for start in range(0, len(out), step):
        out[start : start + step].add_(added[start : start + step])


def _delta(
    found: list[tuple[Module, Pair]], scale: float, dtype: torch.dtype, device: torch.device
) -> Delta:
    firsts = [_finite(first.to(dtype)) for _, (first, _) in found]
    parts, column = [], 0
    for module, (first, second) in found:
        ranks = slice(column, column + first.shape[0])
        outputs = slice(module.first, module.first + module.outputs)
        expand = _finite((second.float() * scale).to(dtype)).to(device)
        parts.append(Part(ranks, outputs, pack(expand)))
        column = ranks.stop
    return Delta(pack(torch.cat(firsts).to(device)), tuple(parts))


def _finite(weight: Tensor) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise ConfigError("the adapter has weights that are not finite in the model's dtype")
    return weight
