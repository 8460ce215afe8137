"""Causal language models of `fallback_table.VERIFIED`, run by transformers over our paged cache.

transformers supplies the layers; attention, the KV cache and every product with weights are ours.
Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from common.errors import ConfigError
from common.model import paged_interface
from common.model.checkpoint import fill_normal, weight_files
from common.model.config_facts import (
    end_token_ids,
    limit_len,
    read_generation,
    refuse_quantized,
    sampling_defaults,
    start_token_id,
    weight_dtype,
)
from common.model.config_json import ConfigJson
from common.model.inputs import ForwardInputs
from common.model.packed_modules import pack_modules
from common.model.row_invariant import RowInvariantFunctions
from common.model.spec import ModelSpec
from kernels.quantize import Quantization

# Names that transformers' configs answer to whatever an architecture calls them in its file.
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def read_fallback(
    path: Path, file: ConfigJson, architecture: str, max_model_len: int | None
) -> ModelSpec:
    """Describe a model of `VERIFIED`. `file` is its config.json as written."""
    refuse_quantized(file)
    config = _read_config(path)
    sizes = ConfigJson(file.source, {name: getattr(config, name, None) for name in SIZES})
    hidden, heads = sizes.integer("hidden_size"), sizes.integer("num_attention_heads")
    vocab_size, generation = sizes.integer("vocab_size"), read_generation(path)
    return ModelSpec(
        architecture=architecture,
        dtype=weight_dtype(file),
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=sizes.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=sizes.integer("num_key_value_heads", heads),
        head_dim=sizes.integer("head_dim", hidden // heads),
        max_model_len=limit_len(_longest(config, sizes), max_model_len),
        tied_embeddings=bool(config.tie_word_embeddings),
        eos_token_ids=end_token_ids(file, generation, vocab_size),
        bos_token_id=start_token_id(file, generation, vocab_size),
        default_sampling=sampling_defaults(generation),
    )


def _read_config(path: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"config.json: {_first_line(error)}") from error


def _longest(config: Any, sizes: ConfigJson) -> int:
    """Longest context in which one angle belongs to one position whatever else is in the batch.

    transformers picks longrope's factors, and dynamic's base, by the longest position in a batch.
    """
    longest = sizes.integer("max_position_embeddings")
    rope = getattr(config, "rope_parameters", None) or {}
    for table in [table for table in rope.values() if isinstance(table, dict)] or [rope]:
        kind = table.get("rope_type", "default")
        if kind == "dynamic":
            raise ConfigError("config.json: rope type dynamic is not supported")
        if kind == "longrope":
            longest = min(longest, int(table["original_max_position_embeddings"]))
    return longest


class TransformersModel:
    """A `CausalLM` around a transformers model that attends through `paged_interface`."""

    def __init__(self, spec: ModelSpec, model: Any) -> None:
        self.spec = spec
        self._model = model

    @torch.no_grad()
    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        with paged_interface.running(inputs, cache), RowInvariantFunctions():
            out = self._model(
                input_ids=inputs.token_ids[None],
                position_ids=inputs.positions[None],
                use_cache=False,
                logits_to_keep=inputs.logits_rows,
            )
        logits: Tensor = out.logits[0]
        return logits.float()


def load_fallback(
    path: Path,
    spec: ModelSpec,
    *,
    load_format: str,
    seed: int,
    device: torch.device,
    quantization: Quantization | None = None,
) -> TransformersModel:
    """Load, pack, and run one token: what the paged attention cannot do is refused here."""
    dtype = getattr(torch, spec.dtype)
    model = _random(path, dtype, seed) if load_format == "dummy" else _from_files(path, dtype)
    model = model.to(device).eval().requires_grad_(False)
    model.config.pad_token_id = None  # no row is padding; transformers would look for it
    pack_modules(model, model.get_output_embeddings(), quantization)
    loaded = TransformersModel(spec, model)
    try:
        _run_one_token(loaded, device)
    except paged_interface.UnknownAttention as error:
        raise ConfigError(
            f"{spec.architecture} with this config is not supported: {error}"
        ) from error
    return loaded


def _from_files(path: Path, dtype: torch.dtype) -> Any:
    load = cast(Any, AutoModelForCausalLM.from_pretrained)  # its stubs lack loading info
    weight_files(path)  # says clearly what is missing
    try:
        model, info = load(
            path,
            dtype=dtype,
            attn_implementation=paged_interface.NAME,
            experts_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the weights cannot be loaded: {_first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[problem]:
            raise ConfigError(
                f"the checkpoint has {problem.replace('_', ' ')}: {min(info[problem])}"
            )
    return model


def _random(path: Path, dtype: torch.dtype, seed: int) -> Any:
    """transformers' own initialisation, its random matrices replaced by ours, equal everywhere."""
    config, make = _read_config(path), cast(Any, AutoModelForCausalLM.from_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(
            config,
            dtype=dtype,
            attn_implementation=paged_interface.NAME,
            experts_implementation="eager",
            trust_remote_code=False,
        )
    std = float(getattr(config, "initializer_range", 0.02))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fill_normal(parameter, seed, name, std)
    return model


def _run_one_token(model: TransformersModel, device: torch.device) -> None:
    spec = model.spec
    shape = (1, spec.num_layers, 2, spec.num_kv_heads, 1, spec.head_dim)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    one = torch.ones(1, dtype=torch.int32, device=device)
    inputs = ForwardInputs(
        token_ids=zero,
        positions=zero,
        slots=zero,
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32, device=device),
        context_lens=one,
        block_tables=torch.zeros(1, 1, dtype=torch.int32, device=device),
        logits_rows=zero,
        max_query_len=1,
        max_context_len=1,
    )
    model.forward(inputs, torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
