"""The tensors of an adapter file, found and measured in its header before anything else is read.

A safetensors file: header size (8 bytes, little-endian), a JSON header, then the data. Knows shapes
and names of a network's projections, no arithmetic.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from common.errors import ConfigError
from common.model.lora.peft_config import ATTENTION, FEED_FORWARD
from common.model.spec import LlamaShape, ModelSpec

FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 4 << 20

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WIDEST = 4  # bytes of an element
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.([0-9]{1,4})\.(self_attn|mlp)\.(\w{1,16})"
    r"\.lora_([AB])\.weight"
)


@dataclass(frozen=True, slots=True)
class Module:
    """One linear of the checkpoint, and where its outputs lie in our fused projection."""

    projection: str  # "qkv", "output", "gate_up" or "down": a field of `llama.Layer`
    inputs: int
    first: int  # of the projection's outputs
    outputs: int


def modules_of(spec: ModelSpec, shape: LlamaShape) -> dict[str, Module]:
    """By the module's name; the same in every layer."""
    hidden, inner = spec.hidden_size, shape.intermediate_size
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return {
        "q_proj": Module("qkv", hidden, 0, query),
        "k_proj": Module("qkv", hidden, query, kv),
        "v_proj": Module("qkv", hidden, query + kv, kv),
        "o_proj": Module("output", query, 0, hidden),
        "gate_proj": Module("gate_up", hidden, 0, inner),
        "up_proj": Module("gate_up", hidden, inner, inner),
        "down_proj": Module("down", inner, 0, hidden),
    }


def max_elements(spec: ModelSpec, shape: LlamaShape, rank: int) -> int:
    """Of an adapter for every module of every layer."""
    sizes = sum(module.inputs + module.outputs for module in modules_of(spec, shape).values())
    return sizes * rank * spec.num_layers


def max_file_bytes(spec: ModelSpec, shape: LlamaShape, rank: int) -> int:
    return 8 + MAX_HEADER_BYTES + _WIDEST * max_elements(spec, shape, rank)


Pair = tuple[Tensor, Tensor]  # A [rank, inputs], B [outputs, rank]


def read_tensors(
    data: bytes | bytearray, spec: ModelSpec, shape: LlamaShape, rank: int
) -> dict[tuple[int, str], Pair]:
    """(layer, module) → A and B, views of `data`. Raises ConfigError before a tensor is made."""
    entries, start = _read_header(data)
    modules = modules_of(spec, shape)
    places = {name: _place(name, entry, modules, spec, rank) for name, entry in entries.items()}
    views: dict[tuple[int, str, str], Tensor] = {}
    covered = 0
    for name, entry in sorted(entries.items(), key=lambda each: each[1].data_offsets):
        first, end = entry.data_offsets
        if first != covered or end > len(data) - start:
            raise ConfigError(f"{FILE}: tensor {name} lies where it must not")
        covered = end
        views[places[name]] = _view(data, start + first, entry, name)
    if covered != len(data) - start:
        raise ConfigError(f"{FILE} holds bytes of no tensor")
    return _pairs(views)


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _read_header(data: bytes | bytearray) -> tuple[dict[str, _Entry], int]:
    """The tensors' entries, and where the data begins."""
    size = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else MAX_HEADER_BYTES + 1
    if size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ConfigError(f"{FILE} is no safetensors file")
    try:
        header = msgspec.json.decode(memoryview(data)[8 : 8 + size], type=dict[str, Any])
        header.pop("__metadata__", None)
        entries = msgspec.convert(header, dict[str, _Entry])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE}: its header cannot be read: {str(error)[:100]}") from None
    if not entries:
        raise ConfigError(f"{FILE} holds no tensors")
    return entries, 8 + size


def _place(
    name: str, entry: _Entry, modules: Mapping[str, Module], spec: ModelSpec, rank: int
) -> tuple[int, str, str]:
    """(layer, module, "A" or "B"), if the tensor belongs there and fits."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{FILE}: tensor {name[:200]} is of no module that can have an adapter")
    layer, block, module_name, which = int(match[1]), match[2], match[3], match[4]
    if module_name not in (ATTENTION if block == "self_attn" else FEED_FORWARD):
        raise ConfigError(f"{FILE}: tensor {name} is of no module that can have an adapter")
    if layer >= spec.num_layers:
        raise ConfigError(f"{FILE}: tensor {name}: the model has {spec.num_layers} layers")
    module = modules[module_name]
    expected = (rank, module.inputs) if which == "A" else (module.outputs, rank)
    if entry.shape != expected:
        raise ConfigError(
            f"{FILE}: tensor {name} has shape {entry.shape[:4]}, the model and r ask for {expected}"
        )
    if entry.dtype not in _DTYPES:
        raise ConfigError(f"{FILE}: tensor {name} has dtype {entry.dtype[:16]}, not supported")
    return layer, module_name, which


def _view(data: bytes | bytearray, offset: int, entry: _Entry, name: str) -> Tensor:
    dtype = _DTYPES[entry.dtype]
    count = entry.shape[0] * entry.shape[1]
    if entry.data_offsets[1] - entry.data_offsets[0] != count * dtype.itemsize:
        raise ConfigError(f"{FILE}: tensor {name} lies where it must not")
    if offset % dtype.itemsize:  # a header of an odd size
        piece = bytearray(memoryview(data)[offset : offset + count * dtype.itemsize])
        return torch.frombuffer(piece, dtype=dtype).view(entry.shape)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=offset).view(entry.shape)


def _pairs(views: Mapping[tuple[int, str, str], Tensor]) -> dict[tuple[int, str], Pair]:
    found: dict[tuple[int, str], Pair] = {}
    for layer, module in {key[:2] for key in views}:
        both = views.get((layer, module, "A")), views.get((layer, module, "B"))
        if both[0] is None or both[1] is None:
            raise ConfigError(f"{FILE}: layer {layer}, {module}: lora_A and lora_B must both exist")
        found[layer, module] = (both[0], both[1])
    return found
