"""A whole forward pass of a Llama-like decoder as one native call.

The same values, bit for bit, as the operations one by one: it spares what lies between them, which
is most of a small model's step. Only for CPUs with the native library and weights packed for it;
`Decoder.of` says None otherwise. Knows no files and no requests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear import PackedWeight
from kernels.native_library import DTYPE_CODES, library, library_for

_L, _D, _P = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class Layer:
    """Heads and inner features are those of one rank."""

    input_norm: Tensor  # [hidden]
    qkv: PackedWeight  # hidden → (heads + 2 * kv_heads) * head_dim
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    output: PackedWeight  # heads * head_dim → hidden
    post_norm: Tensor  # [hidden]
    gate_up: PackedWeight  # hidden → 2 * intermediate
    down: PackedWeight  # intermediate → hidden
    window: int | None


@dataclass(frozen=True, slots=True)
class Network:
    embedding: Tensor  # [vocab, hidden]
    layers: Sequence[Layer]
    norm: Tensor  # [hidden]
    head: PackedWeight  # hidden → vocab
    cos: Tensor  # [positions, rotary dim / 2] float32
    sin: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float  # of the scores


class _Linear(ctypes.Structure):
    _fields_ = [("inputs", _L), ("outputs", _L), ("panels", _P), ("scales", _P), ("bias", _P)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("input_norm", "q_norm", "k_norm", "post_norm")),
        *((name, _Linear) for name in ("qkv", "output", "gate_up", "down")),
        ("window", _L),
    ]


class _Network(ctypes.Structure):
    _fields_ = [
        *((name, _L) for name in ("dtype", "value_bytes", "layers", "vocab", "hidden", "heads")),
        *((name, _L) for name in ("kv_heads", "head_dim", "intermediate", "half")),
        *((name, _D) for name in ("eps", "scale")),
        *((name, _P) for name in ("embedding", "layer", "norm")),
        ("head", _Linear),
        *((name, _P) for name in ("cos", "sin")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, _L) for name in ("tokens", "seqs", "rows", "table_stride")),
        *((name, _P) for name in ("token_ids", "positions", "slots", "logits_rows")),
        *((name, _P) for name in ("starts", "contexts", "tables", "cache")),
        *((name, _L) for name in ("block_stride", "layer_stride", "side_stride", "head_stride")),
        *((name, _L) for name in ("token_stride", "block_size")),
        ("logits", _P),
    ]


class Decoder:
    """Not for several threads at once: it has one place for intermediate values."""

    def __init__(self, network: Network) -> None:
        self._network = network  # keeps the tensors alive
        self._vocab = network.head.out_features
        self._layers = (_Layer * len(network.layers))(*map(_native_layer, network.layers))
        dtype = network.embedding.dtype
        self._native = _Network(
            DTYPE_CODES[dtype],
            dtype.itemsize,
            len(network.layers),
            self._vocab,
            network.embedding.shape[1],
            network.num_heads,
            network.num_kv_heads,
            network.head_dim,
            network.layers[0].down.in_features,
            network.cos.shape[1],
            network.eps,
            network.scale,
            network.embedding.data_ptr(),
            ctypes.addressof(self._layers),
            network.norm.data_ptr(),
            _native_linear(network.head),
            network.cos.data_ptr(),
            network.sin.data_ptr(),
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @classmethod
    def of(cls, network: Network) -> Decoder | None:
        """None where the operations have to be called one by one."""
        weights = [network.head]
        for layer in network.layers:
            weights += [layer.qkv, layer.output, layer.gate_up, layer.down]
        dtype = network.embedding.dtype
        is_alike = all(weight.face == "native" and weight.dtype == dtype for weight in weights)
        if not is_alike or network.head_dim % 2 or library_for(network.embedding) is None:
            return None
        return cls(network)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        cu_seqlens: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
        logits_rows: Tensor,
        cache: Tensor,
    ) -> Tensor:
        """Logits [rows, vocab] float32; K and V of the tokens are written into `cache`.

        token_ids, positions, slots:  [tokens] int64, ids below the vocabulary's size
        cu_seqlens:    [seqs + 1] int32
        context_lens:  [seqs] int32
        block_tables:  [seqs, max blocks] int32
        logits_rows:   [rows] int64, rising
        cache:         [blocks, layers, 2, kv_heads, block_size, head_dim], the model's dtype
        """
        native = library()
        assert native is not None
        logits = torch.empty(len(logits_rows), self._vocab, dtype=torch.float32)
        step = _Step(
            len(token_ids),
            len(context_lens),
            len(logits_rows),
            block_tables.stride(0),
            token_ids.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            logits_rows.data_ptr(),
            cu_seqlens.data_ptr(),
            context_lens.data_ptr(),
            block_tables.data_ptr(),
            cache.data_ptr(),
            *cache.stride()[:5],
            cache.shape[4],
            logits.data_ptr(),
        )
        wanted = native.xpyd_decoder_scratch_bytes(ctypes.byref(self._native), ctypes.byref(step))
        if self._scratch.numel() < wanted:
            self._scratch = torch.empty(wanted, dtype=torch.uint8)
        scratch = self._scratch.data_ptr()
        native.xpyd_decoder(ctypes.byref(self._native), ctypes.byref(step), scratch)
        return logits


def _native_layer(layer: Layer) -> _Layer:
    return _Layer(
        *map(_address, (layer.input_norm, layer.q_norm, layer.k_norm, layer.post_norm)),
        *map(_native_linear, (layer.qkv, layer.output, layer.gate_up, layer.down)),
        layer.window or 0,
    )


def _native_linear(weight: PackedWeight) -> _Linear:
    data, scales, bias = map(_address, (weight.data, weight.scales, weight.bias))
    return _Linear(weight.in_features, weight.out_features, data, scales, bias)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
