"""What a model is, as data: read from a directory's JSON files, before any tensor exists.

Knows no torch. The native family (Llama's relatives, run by `llama.py`) is the table `FAMILY`:
to add an architecture that differs only in what a row can say, add the row and a case in its test.
Everything else is described by `transformers_fallback.py`, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.model.config_json import ConfigJson
from common.model.rope_spec import RopeSpec, read_rope, stretched_max_len

DTYPES = ("bfloat16", "float16", "float32")
MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What generation_config.json recommends; None: it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """What `llama.py` needs beyond `ModelSpec` to build the network."""

    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMS norm of each query and key head before it is turned
    windows: tuple[int | None, ...]  # per layer: a query at p sees keys in (p - window, p]
    initializer_range: float


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and facts of a causal language model. `dtype` is of weights and KV cache alike."""

    architecture: str
    dtype: str  # one of DTYPES
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    default_sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    llama: LlamaShape | None = None  # None: runs through transformers


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """How one architecture differs from Llama. A string names the config field that decides."""

    model_type: str
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    head_dim: int | None = None  # when config.json does not say; None: hidden_size / heads
    windows: Callable[[ConfigJson, int], tuple[int | None, ...]] | None = None


def _one_window(config: ConfigJson, num_layers: int) -> tuple[int | None, ...]:
    """Mistral: every layer alike; an absent field means 4096, null means none."""
    if "sliding_window" in config.values and not config.has("sliding_window"):
        return (None,) * num_layers
    return (config.integer("sliding_window", 4096),) * num_layers


def _window_by_layer(config: ConfigJson, num_layers: int) -> tuple[int | None, ...]:
    """Qwen: off unless `use_sliding_window`; then by layer_types, or from max_window_layers on."""
    kinds = config.texts("layer_types")
    on = (
        config.flag("use_sliding_window", False)
        and config.values.get("sliding_window", 0) is not None
    )
    if not kinds and on:
        first = int(config.values.get("max_window_layers", 28))
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if kinds and len(kinds) != num_layers:
        raise config.error("layer_types", f"must have {num_layers} entries")
    if not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise config.error("layer_types", "may name sliding_attention and full_attention only")
    if "sliding_attention" not in kinds:
        return (None,) * num_layers
    if not on:
        raise config.error("layer_types", "names sliding_attention while no window is set")
    window = config.integer("sliding_window", 4096)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


FAMILY: dict[str, FamilyRow] = {
    "LlamaForCausalLM": FamilyRow(
        "llama", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": FamilyRow("mistral", windows=_one_window),
    "Qwen2ForCausalLM": FamilyRow("qwen2", qkv_bias=True, windows=_window_by_layer),
    "Qwen3ForCausalLM": FamilyRow(
        "qwen3",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        head_dim=128,
        windows=_window_by_layer,
    ),
}


def read_spec(path: Path, max_model_len: int | None = None) -> ModelSpec:
    """Describe the model in directory `path`; raises ConfigError with one clear line.

    max_model_len: shortens the context; longer than the model was made for is refused.
    """
    config = ConfigJson.read(path / "config.json")
    architecture = architecture_of(config)
    if architecture in FAMILY:
        return native_spec(config, read_generation(path), architecture, max_model_len)
    from common.model.transformers_fallback import fallback_spec  # slow import, rarely needed

    return fallback_spec(path, max_model_len)


def architecture_of(config: ConfigJson) -> str:
    named = config.texts("architectures")
    if named:
        return named[0]
    model_type = config.text("model_type")
    for architecture, row in FAMILY.items():
        if row.model_type == model_type:
            return architecture
    raise ConfigError(f"{config.source}: architectures is missing")


def native_spec(
    config: ConfigJson, generation: ConfigJson, architecture: str, max_model_len: int | None
) -> ModelSpec:
    row = FAMILY[architecture]
    refuse_quantized(config)
    if config.text("hidden_act", "silu") != "silu":
        raise config.error("hidden_act", "must be silu")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"must divide the {heads} attention heads")
    if not config.has("head_dim") and row.head_dim is None and hidden % heads:
        raise config.error("hidden_size", f"must be divisible by the {heads} attention heads")
    head_dim = config.integer("head_dim", row.head_dim or hidden // heads)
    if head_dim % 2:
        raise config.error("head_dim", "must be even")
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    max_position = config.integer("max_position_embeddings")
    rope = read_rope(config, max_position)
    vocab_size = config.integer("vocab_size")
    eos, bos = end_and_start(config, generation, vocab_size)

    def says(rule: bool | str) -> bool:
        return config.flag(rule, False) if isinstance(rule, str) else rule

    return ModelSpec(
        architecture=architecture,
        dtype=weight_dtype(config),
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_model_len=limit_len(stretched_max_len(rope, max_position), max_model_len),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        eos_token_ids=eos,
        bos_token_id=bos,
        default_sampling=sampling_defaults(generation),
        llama=LlamaShape(
            intermediate_size=config.integer("intermediate_size"),
            norm_eps=config.number("rms_norm_eps", 1e-6),
            rope=rope,
            qkv_bias=says(row.qkv_bias),
            o_bias=says(row.o_bias),
            mlp_bias=says(row.mlp_bias),
            qk_norm=row.qk_norm,
            windows=row.windows(config, layers) if row.windows else (None,) * layers,
            initializer_range=config.number("initializer_range", 0.02),
        ),
    )


# What the fallback reads in the same way.


def read_generation(path: Path) -> ConfigJson:
    return ConfigJson.read(path / "generation_config.json", optional=True)


def refuse_quantized(config: ConfigJson) -> None:
    if config.has("quantization_config"):
        method = config.table("quantization_config").text("quant_method", "unknown")
        raise ConfigError(f"{config.source}: quantised weights ({method}) are not supported")


def weight_dtype(config: ConfigJson) -> str:
    """`dtype` or `torch_dtype`; without either float32, as transformers assumes."""
    name = "dtype" if config.has("dtype") else "torch_dtype"
    dtype = config.text(name, "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise config.error(name, f"must be one of {', '.join(DTYPES)}")
    return dtype


def limit_len(longest: int, wanted: int | None) -> int:
    if wanted is None:
        return longest
    if not 1 <= wanted <= longest:
        raise ConfigError(f"max_model_len must be from 1 to {longest} for this model, not {wanted}")
    return wanted


def end_and_start(
    config: ConfigJson, generation: ConfigJson, vocab_size: int
) -> tuple[tuple[int, ...], int | None]:
    """End-of-sequence ids of both files and the start id.

    Ids outside the vocabulary are dropped: no row of logits can choose them.
    """
    found = generation.token_ids("eos_token_id") + config.token_ids("eos_token_id")
    eos = tuple(dict.fromkeys(token for token in found if 0 <= token < vocab_size))
    starts = config.token_ids("bos_token_id") or generation.token_ids("bos_token_id")
    return eos, next((token for token in starts if 0 <= token < vocab_size), None)


def sampling_defaults(generation: ConfigJson) -> SamplingDefaults:
    top_k = generation.maybe_number("top_k")
    return SamplingDefaults(
        temperature=generation.maybe_number("temperature"),
        top_p=generation.maybe_number("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=generation.maybe_number("min_p"),
        repetition_penalty=generation.maybe_number("repetition_penalty"),
    )
