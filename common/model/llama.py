"""The Llama family: one network for every architecture that `spec.FAMILY` describes.

Projections that read the same input are fused and packed once. The residual stream travels beside
the hidden state, so that each addition is fused with the norm that follows it. Several ranks may
share it (shards.py says how): each holds a part of every matrix, and they meet after attention,
after the feed-forward, and in the embedding and the logits. Knows no files and no processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.checkpoint import Weights
from common.model.inputs import ForwardInputs
from common.model.lora.adapter import AdapterRows, project
from common.model.ranks import Alone, Ranks
from common.model.rope import rope_tables
from common.model.shards import Part, Shard
from common.model.spec import LlamaShape, ModelSpec
from kernels.activation import silu_mul
from kernels.attention import paged_attention
from kernels.decoder import Decoder, Layer, Network
from kernels.linear import PackedWeight, linear, pack
from kernels.norm import add_rms_norm, rms_norm
from kernels.quantize import Quantization
from kernels.rope import rope_and_store

IGNORABLE = ("rotary_emb.inv_freq",)  # stored in some old checkpoints; computed here


class Llama:
    """A `CausalLM`: token ids in, float32 logits out, K and V left in the paged cache."""

    def __init__(
        self,
        spec: ModelSpec,
        shape: LlamaShape,
        weights: Weights,
        device: torch.device,
        ranks: Ranks | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        """Takes every tensor it needs from `weights`; `spec.dtype` is what they become.

        spec:   of the whole model, however many ranks share it
        ranks:  with whom it is shared; None: with nobody
        quantization:  of projections and head; the embedding stays, tied or not
        """
        self.spec = spec
        self._ranks: Ranks = ranks or Alone()
        self._local = self._ranks.shard.local(spec)
        self._shape = shape
        self._scale = spec.head_dim**-0.5
        dtype = getattr(torch, spec.dtype)
        reader = _Reader(weights, dtype, device, self._ranks.shard, quantization)
        self._vocab, _ = self._ranks.shard.padded_share(spec.vocab_size)
        self._embedding = reader.vocab_rows(
            "model.embed_tokens.weight", spec.vocab_size, spec.hidden_size
        )
        self._layers = [_read_layer(reader, spec, shape, i) for i in range(spec.num_layers)]
        self._norm = reader.tensor("model.norm.weight", spec.hidden_size)
        self._num_outputs = spec.vocab_size
        self._head: PackedWeight | None = None
        if spec.pooling is not None:
            self._num_outputs = len(spec.pooling.labels) or spec.hidden_size
            if spec.pooling.labels:
                self._head = pack(
                    reader.tensor("score.weight", self._num_outputs, spec.hidden_size)
                )
        elif spec.tied_embeddings:
            self._head = pack(self._embedding, quantization=quantization)
        else:
            head = reader.vocab_rows("lm_head.weight", spec.vocab_size, spec.hidden_size)
            self._head = pack(head, quantization=quantization)
        has_other_head = spec.tied_embeddings or spec.pooling is not None
        weights.finish((*IGNORABLE, "lm_head.weight") if has_other_head else IGNORABLE)
        self._cos, self._sin = rope_tables(shape.rope, spec.head_dim, spec.max_model_len, device)
        self._decoder = self._in_one_call()

    def _in_one_call(self) -> Decoder | None:
        if self._head is None or self._ranks.shard.num_ranks > 1:
            return None
        network = Network(
            self._embedding,
            self._layers,
            self._norm,
            self._head,
            self._cos,
            self._sin,
            self.spec.num_heads,
            self.spec.num_kv_heads,
            self.spec.head_dim,
            self._shape.norm_eps,
            self._scale,
        )
        return Decoder.of(network)

    @property
    def windows(self) -> set[int | None]:
        """Of its layers' attention."""
        return set(self._shape.windows)

    @property
    def quantized_weights(self) -> list[PackedWeight]:
        """One of each shape."""
        first = self._layers[0]
        weights = [first.qkv, first.output, first.gate_up, first.down]
        weights += [] if self._head is None else [self._head]
        shapes = {w.data.shape: w for w in weights if w.scales is not None}
        return list(shapes.values())

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """Logits [rows, vocab] float32 of `inputs.logits_rows`; of use on rank 0 only. A pooling
        model gives what it has instead: [rows, labels], or [rows, hidden].

        cache: [blocks, layers, 2, kv_heads, block_size, head_dim], with the KV heads of this rank;
        this step's K and V are written.
        """
        if self._decoder is None or inputs.adapters or cache.dtype != self._embedding.dtype:
            return self.forward_by_operations(inputs, cache)
        logits = self._decoder.forward(
            inputs.token_ids,
            inputs.positions,
            inputs.slots,
            inputs.cu_seqlens,
            inputs.context_lens,
            inputs.block_tables,
            inputs.logits_rows,
            cache,
        )
        return logits[:, : self._num_outputs]

    def forward_by_operations(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """The network, readable: what any device runs, and what the one call gives bit for bit."""
        eps = self._shape.norm_eps
        residual = self._embed(inputs.token_ids)
        hidden = rms_norm(residual, self._layers[0].input_norm, eps)
        for i, layer in enumerate(self._layers):
            if i > 0:
                hidden, residual = add_rms_norm(hidden, residual, layer.input_norm, eps)
            hidden = self._attend(i, hidden, inputs, cache[:, i, 0], cache[:, i, 1])
            hidden, residual = add_rms_norm(hidden, residual, layer.post_norm, eps)
            inner = silu_mul(project(hidden, layer.gate_up, inputs.adapters, i, "gate_up"))
            hidden = self._whole(inner, layer.down, inputs.adapters, i, "down")
        rows = inputs.logits_rows
        hidden, _ = add_rms_norm(hidden[rows], residual[rows], self._norm, eps)
        if self._head is None:
            return hidden.float()
        logits = self._ranks.gather_columns(linear(hidden, self._head, out_dtype=torch.float32))
        return logits[:, : self._num_outputs]

    def _embed(self, token_ids: Tensor) -> Tensor:
        """[tokens, hidden]; each rank adds the rows of its part of the vocabulary."""
        if self._ranks.shard.num_ranks == 1:
            return self._embedding[token_ids]
        is_ours = (token_ids >= self._vocab.start) & (token_ids < self._vocab.stop)
        rows = self._embedding[(token_ids - self._vocab.start) * is_ours]
        return self._ranks.sum(rows * is_ours[:, None])

    def _whole(
        self,
        x: Tensor,
        weight: PackedWeight,
        adapters: tuple[AdapterRows, ...],
        index: int,
        projection: str,
    ) -> Tensor:
        """x [tokens, features of this rank] times its columns of the weight, over all ranks."""
        if self._ranks.shard.num_ranks == 1:
            return project(x, weight, adapters, index, projection)
        assert not adapters, "adapters are not sharded"
        part = linear(x, weight, out_dtype=torch.float32 if self._ranks.is_wide else None)
        return self._ranks.sum(part).to(x.dtype)

    def _attend(
        self, index: int, hidden: Tensor, inputs: ForwardInputs, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        spec, eps, layer = self._local, self._shape.norm_eps, self._layers[index]
        heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        # [tokens, heads + 2 * kv_heads, head_dim]
        qkv = project(hidden, layer.qkv, inputs.adapters, index, "qkv")
        qkv = qkv.view(-1, sum(heads), spec.head_dim)
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
        return self._whole(mixed.flatten(1), layer.output, inputs.adapters, index, "output")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Tensors of the right dtype and place, read one at a time; of matrices, this rank's part."""

    weights: Weights
    dtype: torch.dtype
    device: torch.device
    shard: Shard
    quantization: Quantization | None

    def tensor(self, name: str, *shape: int) -> Tensor:
        target = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.weights.copy_into(target, name)
        return target

    def vocab_rows(self, name: str, vocab_size: int, hidden: int) -> Tensor:
        """A row per token of this rank's part, then zeros up to the size of all ranks' parts."""
        rows, room = self.shard.padded_share(vocab_size)
        target = torch.zeros(room, hidden, dtype=self.dtype, device=self.device)
        if rows:
            self._copy(target[: len(rows)], name, (vocab_size, hidden), 0, rows)
        return target

    def packed(self, parts: list[_Rows], inputs: int, bias: bool) -> PackedWeight:
        """One projection made of several that share their input."""
        outputs = [len(part.ours) for part in parts]
        weight = torch.empty(sum(outputs), inputs, dtype=self.dtype, device=self.device)
        for part, rows in zip(parts, torch.split(weight, outputs), strict=True):
            self._copy(rows, f"{part.name}.weight", (part.outputs, inputs), 0, part.ours)
        if not bias:
            return pack(weight, quantization=self.quantization)
        biases = torch.empty(sum(outputs), dtype=self.dtype, device=self.device)
        for part, rows in zip(parts, torch.split(biases, outputs), strict=True):
            self._copy(rows, f"{part.name}.bias", (part.outputs,), 0, part.ours)
        return pack(weight, biases, self.quantization)

    def packed_columns(
        self, name: str, outputs: int, inputs: int, ours: range, bias: bool
    ) -> PackedWeight:
        """A projection whose input is divided; rank 0 adds the bias, once for all."""
        weight = torch.empty(outputs, len(ours), dtype=self.dtype, device=self.device)
        self._copy(weight, f"{name}.weight", (outputs, inputs), 1, ours)
        biases = self.tensor(f"{name}.bias", outputs) if bias else None
        return pack(weight, biases if self.shard.rank == 0 else None, self.quantization)

    def _copy(
        self, target: Tensor, name: str, shape: tuple[int, ...], axis: int, ours: range
    ) -> None:
        is_whole = len(ours) == shape[axis]
        part = None if is_whole else Part(shape, axis, ours.start, ours.stop)
        self.weights.copy_into(target, name, part)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A projection, and which of its outputs are this rank's."""

    name: str
    outputs: int  # of the whole
    ours: range


def _read_layer(reader: _Reader, spec: ModelSpec, shape: LlamaShape, index: int) -> Layer:
    at = f"model.layers.{index}"
    hidden, inner, shard = spec.hidden_size, shape.intermediate_size, reader.shard
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention, feed_forward = f"{at}.self_attn", f"{at}.mlp"
    ours = shard.share(inner)
    queries = _features(shard.share(spec.num_heads), spec.head_dim)
    keys = _features(shard.kv_heads(spec.num_kv_heads), spec.head_dim)

    def head_norm(name: str) -> Tensor | None:
        return reader.tensor(f"{attention}.{name}.weight", spec.head_dim) if shape.qk_norm else None

    return Layer(
        input_norm=reader.tensor(f"{at}.input_layernorm.weight", hidden),
        qkv=reader.packed(
            [
                _Rows(f"{attention}.q_proj", query, queries),
                _Rows(f"{attention}.k_proj", kv, keys),
                _Rows(f"{attention}.v_proj", kv, keys),
            ],
            hidden,
            shape.qkv_bias,
        ),
        q_norm=head_norm("q_norm"),
        k_norm=head_norm("k_norm"),
        output=reader.packed_columns(f"{attention}.o_proj", hidden, query, queries, shape.o_bias),
        post_norm=reader.tensor(f"{at}.post_attention_layernorm.weight", hidden),
        gate_up=reader.packed(
            [
                _Rows(f"{feed_forward}.gate_proj", inner, ours),
                _Rows(f"{feed_forward}.up_proj", inner, ours),
            ],
            hidden,
            shape.mlp_bias,
        ),
        down=reader.packed_columns(
            f"{feed_forward}.down_proj", hidden, inner, ours, shape.mlp_bias
        ),
        window=shape.windows[index],
    )


def _features(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
