"""Facts that every Hugging Face model directory states in the same way."""

from __future__ import annotations

from pathlib import Path

from common.errors import ConfigError
from common.model.config_json import ConfigJson
from common.model.spec import DTYPES, SamplingDefaults


def architecture_of(config: ConfigJson) -> str:
    named = config.texts("architectures")
    if not named:
        raise ConfigError(f"{config.source}: architectures is missing")
    return named[0]


def read_generation(path: Path) -> ConfigJson:
    """generation_config.json, or nothing."""
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
    """The context length to serve: `wanted`, or all that the model was made for."""
    if wanted is None:
        return longest
    if not 1 <= wanted <= longest:
        raise ConfigError(f"max_model_len must be from 1 to {longest} for this model, not {wanted}")
    return wanted


def end_token_ids(config: ConfigJson, generation: ConfigJson, vocab_size: int) -> tuple[int, ...]:
    """End-of-sequence ids of both files, without ids that no row of logits can choose."""
    found = generation.token_ids("eos_token_id") + config.token_ids("eos_token_id")
    return tuple(dict.fromkeys(token for token in found if 0 <= token < vocab_size))


def start_token_id(config: ConfigJson, generation: ConfigJson, vocab_size: int) -> int | None:
    found = config.token_ids("bos_token_id") + generation.token_ids("bos_token_id")
    return next((token for token in found if 0 <= token < vocab_size), None)


def sampling_defaults(generation: ConfigJson) -> SamplingDefaults:
    top_k = generation.maybe_number("top_k")
    return SamplingDefaults(
        temperature=generation.maybe_number("temperature"),
        top_p=generation.maybe_number("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=generation.maybe_number("min_p"),
        repetition_penalty=generation.maybe_number("repetition_penalty"),
    )
