"""The Llama family: one network for every architecture that `spec.FAMILY` describes.

Projections that read the same input are fused and packed once. The residual stream travels beside
the hidden state, so that each addition is fused with the norm that follows it. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.checkpoint import Weights
from common.model.inputs import ForwardInputs
from common.model.rope import rope_tables
from common.model.spec import LlamaShape, ModelSpec
from kernels.activation import silu_mul
from kernels.attention import paged_attention
from kernels.linear import PackedWeight, linear, pack
from kernels.norm import add_rms_norm, rms_norm
from kernels.rope import rope_and_store

IGNORABLE = ("rotary_emb.inv_freq",)  # stored in some old checkpoints; computed here


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Tensor  # [hidden]
    qkv: PackedWeight  # hidden → (heads + 2 * kv_heads) * head_dim
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    output: PackedWeight  # heads * head_dim → hidden
    post_norm: Tensor  # [hidden]
    gate_up: PackedWeight  # hidden → 2 * intermediate
    down: PackedWeight  # intermediate → hidden
    window: int | None


class Llama:
    """A `CausalLM`: token ids in, float32 logits out, K and V left in the paged cache."""

    def __init__(
        self, spec: ModelSpec, shape: LlamaShape, weights: Weights, device: torch.device
    ) -> None:
        """Takes every tensor it needs from `weights`; `spec.dtype` is what they become."""
        self.spec = spec
        self._shape = shape
        self._scale = spec.head_dim**-0.5
        reader = _Reader(weights, getattr(torch, spec.dtype), device)
        self._embedding = reader.tensor(
            "model.embed_tokens.weight", spec.vocab_size, spec.hidden_size
        )
        self._layers = [_read_layer(reader, spec, shape, i) for i in range(spec.num_layers)]
        self._norm = reader.tensor("model.norm.weight", spec.hidden_size)
        if spec.tied_embeddings:
            self._head = pack(self._embedding)
        else:
            self._head = reader.packed([("lm_head", spec.vocab_size)], spec.hidden_size, bias=False)
        weights.finish((*IGNORABLE, "lm_head.weight") if spec.tied_embeddings else IGNORABLE)
        self._cos, self._sin = rope_tables(shape.rope, spec.head_dim, spec.max_model_len, device)

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """Logits [rows, vocab] float32 of `inputs.logits_rows`.

        cache: [blocks, layers, 2, kv_heads, block_size, head_dim]; this step's K and V are written.
        """
        eps = self._shape.norm_eps
        residual = self._embedding[inputs.token_ids]
        hidden = rms_norm(residual, self._layers[0].input_norm, eps)
        for i, layer in enumerate(self._layers):
            if i > 0:
                hidden, residual = add_rms_norm(hidden, residual, layer.input_norm, eps)
            hidden = self._attend(layer, hidden, inputs, cache[:, i, 0], cache[:, i, 1])
            hidden, residual = add_rms_norm(hidden, residual, layer.post_norm, eps)
            hidden = linear(silu_mul(linear(hidden, layer.gate_up)), layer.down)
        rows = inputs.logits_rows
        hidden, _ = add_rms_norm(hidden[rows], residual[rows], self._norm, eps)
        return linear(hidden, self._head, out_dtype=torch.float32)

    def _attend(
        self, layer: Layer, hidden: Tensor, inputs: ForwardInputs, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        spec, eps = self.spec, self._shape.norm_eps
        heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        # [tokens, heads + 2 * kv_heads, head_dim]
        qkv = linear(hidden, layer.qkv).view(-1, sum(heads), spec.head_dim)
        q, k, v = torch.split(qkv, heads, dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, eps), rms_norm(k, layer.k_norm, eps)
        rope_and_store(
            q, k, v, self._cos, self._sin, inputs.positions, k_cache, v_cache, inputs.slots
        )
        mixed = paged_attention(
            q,
            k_cache,
            v_cache,
            inputs.block_tables,
            inputs.cu_seqlens,
            inputs.context_lens,
            self._scale,
            window=layer.window,
            max_query_len=inputs.max_query_len,
            max_context_len=inputs.max_context_len,
        )
        return linear(mixed.flatten(1), layer.output)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Tensors of the right dtype and place, read one at a time."""

    weights: Weights
    dtype: torch.dtype
    device: torch.device

    def tensor(self, name: str, *shape: int) -> Tensor:
        target = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.weights.copy_into(target, name)
        return target

    def packed(self, parts: list[tuple[str, int]], inputs: int, bias: bool) -> PackedWeight:
        """One projection made of several that share their input; parts are (name, outputs)."""
        outputs = [size for _, size in parts]
        weight = torch.empty(sum(outputs), inputs, dtype=self.dtype, device=self.device)
        for (name, _), rows in zip(parts, torch.split(weight, outputs), strict=True):
            self.weights.copy_into(rows, f"{name}.weight")
        if not bias:
            return pack(weight)
        biases = torch.empty(sum(outputs), dtype=self.dtype, device=self.device)
        for (name, _), rows in zip(parts, torch.split(biases, outputs), strict=True):
            self.weights.copy_into(rows, f"{name}.bias")
        return pack(weight, biases)


def _read_layer(reader: _Reader, spec: ModelSpec, shape: LlamaShape, index: int) -> Layer:
    at = f"model.layers.{index}"
    hidden, inner = spec.hidden_size, shape.intermediate_size
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention, feed_forward = f"{at}.self_attn", f"{at}.mlp"

    def head_norm(name: str) -> Tensor | None:
        return reader.tensor(f"{attention}.{name}.weight", spec.head_dim) if shape.qk_norm else None

    return Layer(
        input_norm=reader.tensor(f"{at}.input_layernorm.weight", hidden),
        qkv=reader.packed(
            [
                (f"{attention}.q_proj", query),
                (f"{attention}.k_proj", kv),
                (f"{attention}.v_proj", kv),
            ],
            hidden,
            shape.qkv_bias,
        ),
        q_norm=head_norm("q_norm"),
        k_norm=head_norm("k_norm"),
        output=reader.packed([(f"{attention}.o_proj", hidden)], query, shape.o_bias),
        post_norm=reader.tensor(f"{at}.post_attention_layernorm.weight", hidden),
        gate_up=reader.packed(
            [(f"{feed_forward}.gate_proj", inner), (f"{feed_forward}.up_proj", inner)],
            hidden,
            shape.mlp_bias,
        ),
        down=reader.packed([(f"{feed_forward}.down_proj", hidden)], inner, shape.mlp_bias),
        window=shape.windows[index],
    )
