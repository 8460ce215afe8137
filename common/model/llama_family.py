"""Which architectures `llama.py` runs, and how their config.json is read.

To add one that differs from Llama only in what a row can say, add the row and a case in its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.model.config_facts import (
    end_token_ids,
    limit_len,
    refuse_quantized,
    sampling_defaults,
    start_token_id,
    weight_dtype,
)
from common.model.config_json import ConfigJson
from common.model.rope_spec import RopeSpec, read_rope, stretched_max_len
from common.model.spec import LlamaShape, ModelSpec

MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """How one architecture differs from Llama. A string names the config field that decides."""

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    head_dim: int | None = None  # when config.json does not say; None: hidden_size / heads
    windows: Callable[[ConfigJson, int], tuple[int | None, ...]] | None = None


def _one_window(config: ConfigJson, num_layers: int) -> tuple[int | None, ...]:
    """Every layer alike; an absent field means 4096, null means none."""
    if "sliding_window" in config.values and not config.has("sliding_window"):
        return (None,) * num_layers
    return (config.integer("sliding_window", 4096),) * num_layers


def _window_by_layer(config: ConfigJson, num_layers: int) -> tuple[int | None, ...]:
    """Off unless `use_sliding_window`; then by layer_types, or from max_window_layers on."""
    off = "sliding_window" in config.values and not config.has("sliding_window")
    window = None
    if config.flag("use_sliding_window", False) and not off:
        window = config.integer("sliding_window", 4096)
    kinds = config.texts("layer_types")
    if not kinds:
        first = config.integer("max_window_layers", 28, least=0) if window else num_layers
        return tuple(window if i >= first else None for i in range(num_layers))
    if len(kinds) != num_layers:
        raise config.error("layer_types", f"must have {num_layers} entries")
    if not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise config.error("layer_types", "may name sliding_attention and full_attention only")
    if "sliding_attention" in kinds and window is None:
        raise config.error("layer_types", "names sliding_attention while no window is set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


FAMILY: dict[str, FamilyRow] = {
    "LlamaForCausalLM": FamilyRow(
        qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": FamilyRow(windows=_one_window),
    "Qwen2ForCausalLM": FamilyRow(qkv_bias=True, windows=_window_by_layer),
    "Qwen3ForCausalLM": FamilyRow(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        head_dim=128,
        windows=_window_by_layer,
    ),
}


CLASSIFIER = "ForSequenceClassification"


def generating_form(architecture: str) -> str:
    """The member of `FAMILY` with the same layers, if it is one of them under another head."""
    for suffix in (CLASSIFIER, "Model"):
        if architecture.endswith(suffix):
            return architecture.removesuffix(suffix) + "ForCausalLM"
    return architecture


def read_native(
    config: ConfigJson, generation: ConfigJson, architecture: str, max_model_len: int | None
) -> ModelSpec:
    """Describe a model of `FAMILY`; every size is checked, nothing is allocated."""
    row = FAMILY[architecture]
    refuse_quantized(config)
    heads, kv_heads, head_dim = _heads(config, row)
    vocab_size = config.integer("vocab_size")
    max_position = config.integer("max_position_embeddings")
    rope = read_rope(config, max_position)
    shape = _shape(config, row, rope)
    return ModelSpec(
        architecture=architecture,
        dtype=weight_dtype(config),
        vocab_size=vocab_size,
        hidden_size=config.integer("hidden_size"),
        num_layers=len(shape.windows),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_model_len=limit_len(stretched_max_len(rope, max_position), max_model_len),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        eos_token_ids=end_token_ids(config, generation, vocab_size),
        bos_token_id=start_token_id(config, generation, vocab_size),
        default_sampling=sampling_defaults(generation),
        llama=shape,
    )


def _heads(config: ConfigJson, row: FamilyRow) -> tuple[int, int, int]:
    """(query heads, KV heads, dimensions of a head)"""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"must divide the {heads} attention heads")
    if not config.has("head_dim") and row.head_dim is None and hidden % heads:
        raise config.error("hidden_size", f"must be divisible by the {heads} attention heads")
    head_dim = config.integer("head_dim", row.head_dim or hidden // heads)
    if head_dim % 2:
        raise config.error("head_dim", "must be even")
    return heads, kv_heads, head_dim


def _shape(config: ConfigJson, row: FamilyRow, rope: RopeSpec) -> LlamaShape:
    if config.text("hidden_act", "silu") != "silu":
        raise config.error("hidden_act", "must be silu")
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)

    def says(rule: bool | str) -> bool:
        return config.flag(rule, False) if isinstance(rule, str) else rule

    return LlamaShape(
        intermediate_size=config.integer("intermediate_size"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=rope,
        qkv_bias=says(row.qkv_bias),
        o_bias=says(row.o_bias),
        mlp_bias=says(row.mlp_bias),
        qk_norm=row.qk_norm,
        windows=row.windows(config, layers) if row.windows else (None,) * layers,
        initializer_range=config.number("initializer_range", 0.02),
    )
