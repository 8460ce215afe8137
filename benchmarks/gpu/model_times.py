"""An 8B-shape Llama with random weights: decode steps and prefill, against this GPU's floors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.timing import seconds
from common.model.cuda_graphs import GraphedModel
from common.model.inputs import ForwardInputs
from common.model.llama import Llama
from common.model.rope_spec import RopeSpec
from common.model.shards import Part
from common.model.spec import LlamaShape, ModelSpec
from common.model.step_memory import one_chunk
from kernels.quantize import Quantization

BLOCK_SIZE = 32
CONTEXT = 1024
BATCHES = (1, 8, 64, 256)
PROMPTS = (512, 2048, 8192)


class RandomWeights:
    """Drawn on the GPU: 8 billion numbers in a second."""

    def copy_into(self, target: Tensor, name: str, part: Part | None = None) -> None:
        if target.dim() > 1:
            target.normal_(0.0, 0.02)
        else:
            target.fill_(0.0 if name.endswith("bias") else 1.0)

    def finish(self, ignorable: Iterable[str]) -> None:
        """Nothing can be left over."""


def llama_8b(num_layers: int = 32, quantization: Quantization | None = None) -> Llama:
    shape = LlamaShape(
        intermediate_size=14336,
        norm_eps=1e-5,
        rope=RopeSpec(500000.0),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None,) * num_layers,
        initializer_range=0.02,
    )
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        vocab_size=128256,
        hidden_size=4096,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_model_len=16384,
        tied_embeddings=False,
        eos_token_ids=(),
        bos_token_id=None,
        llama=shape,
    )
    device = torch.device("cuda")
    return Llama(spec, shape, RandomWeights(), device, quantization=quantization)


def decode_inputs(num_seqs: int, context: int) -> ForwardInputs:
    """A decode step: sequence i owns its own run of blocks, the new token is its last."""
    per_seq = -(-context // BLOCK_SIZE)
    tables = torch.arange(num_seqs * per_seq, dtype=torch.int32, device="cuda")
    tables = tables.view(num_seqs, per_seq)
    last = context - 1
    slots = tables[:, last // BLOCK_SIZE].long() * BLOCK_SIZE + last % BLOCK_SIZE
    return ForwardInputs(
        token_ids=torch.zeros(num_seqs, dtype=torch.int64, device="cuda"),
        positions=torch.full((num_seqs,), last, dtype=torch.int64, device="cuda"),
        slots=slots,
        cu_seqlens=torch.arange(num_seqs + 1, dtype=torch.int32, device="cuda"),
        context_lens=torch.full((num_seqs,), context, dtype=torch.int32, device="cuda"),
        block_tables=tables,
        logits_rows=torch.arange(num_seqs, device="cuda"),
        max_query_len=1,
        max_context_len=context,
    )


def new_cache(model: Llama) -> Tensor:
    spec = model.spec
    num_blocks = max(BATCHES) * CONTEXT // BLOCK_SIZE
    shape = (num_blocks, spec.num_layers, 2, spec.num_kv_heads, BLOCK_SIZE, spec.head_dim)
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def quantized_step_times(
    model: Llama, cache: Tensor, ceilings: Ceilings
) -> list[dict[str, float | str]]:
    """Decode steps of a model with eight-bit weights: name, seconds, ratio to its own floor."""
    graphed = GraphedModel(model, cache, 64)
    spec = model.spec
    kv_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 2
    rows: list[dict[str, float | str]] = []
    with torch.inference_mode():
        for num_seqs in (1, 8, 64):
            inputs = decode_inputs(num_seqs, CONTEXT)
            took = seconds(partial(graphed.forward, inputs, cache), is_cold=False)
            read = weight_bytes(model) / 2 + num_seqs * CONTEXT * kv_token
            compute = weight_bytes(model) * num_seqs / ceilings.gemm_flop_s
            floor = max(read / ceilings.read_bytes_s, compute)
            name = f"decode, batch {num_seqs}"
            rows.append({"name": name, "seconds": took, "over floor": took / floor})
    return rows


def weight_bytes(model: Llama) -> int:
    """What a decode step reads in bfloat16: everything but the embedding's rows."""
    spec = model.spec
    shape = spec.llama
    assert shape is not None
    attention = spec.hidden_size * spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)
    per_layer = attention + 3 * spec.hidden_size * shape.intermediate_size
    return 2 * (spec.num_layers * per_layer + spec.hidden_size * spec.vocab_size)


def graph_error(model: Llama, cache: Tensor) -> float:
    """Largest difference of logits between a replayed step, padded from 5 to 8, and a plain one."""
    graphed = GraphedModel(model, cache, 8)
    inputs = decode_inputs(5, 300)
    with torch.inference_mode():
        plain = model.forward(inputs, cache).clone()
        replayed = graphed.forward(inputs, cache)
    return float((plain - replayed).abs().max() / plain.abs().max())


def step_times(model: Llama, cache: Tensor, ceilings: Ceilings) -> list[dict[str, float | str]]:
    """Rows of name, seconds, and the ratio to the floor (decode) or share of the peak (prefill)."""
    spec = model.spec
    graphed = GraphedModel(model, cache, max(BATCHES))
    kv_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 2
    rows: list[dict[str, float | str]] = []
    with torch.inference_mode():
        for num_seqs in BATCHES:
            inputs = decode_inputs(num_seqs, CONTEXT)
            took = seconds(partial(graphed.forward, inputs, cache), is_cold=False)
            eager = seconds(partial(model.forward, inputs, cache), is_cold=False)
            read = weight_bytes(model) + num_seqs * CONTEXT * kv_token
            compute = weight_bytes(model) * num_seqs / ceilings.gemm_flop_s
            floor = max(read / ceilings.read_bytes_s, compute)
            name = f"decode, batch {num_seqs}"
            rows.append({"name": name, "seconds": took, "eager": eager, "over floor": took / floor})
        for num_tokens in PROMPTS:
            inputs = one_chunk(num_tokens, 1, BLOCK_SIZE, cache.device)
            took = seconds(partial(model.forward, inputs, cache), runs=5)
            flop = num_tokens * (weight_bytes(model) - 2 * spec.hidden_size * spec.vocab_size)
            flop += 2 * spec.num_layers * num_tokens**2 * spec.num_heads * spec.head_dim
            share = flop / ceilings.gemm_flop_s / took
            rows.append({"name": f"prefill {num_tokens}", "seconds": took, "of peak": share})
    return rows
