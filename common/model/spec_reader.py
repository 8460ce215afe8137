"""From a model directory to its `ModelSpec`. Imports transformers only for what runs through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.errors import ConfigError
from common.model.config_facts import architecture_of, read_generation
from common.model.config_json import ConfigJson
from common.model.fallback_table import VERIFIED
from common.model.llama_family import CLASSIFIER, FAMILY, generating_form, read_native
from common.model.pooling_facts import read_classifier, read_embedding
from common.model.spec import ModelSpec, Pooling, Runner


def read_spec(path: Path, max_model_len: int | None = None, runner: Runner = "auto") -> ModelSpec:
    """Describe the model in directory `path`; raises ConfigError with one clear line.

    max_model_len: shortens the context; longer than the model was made for is refused.
    runner:        what is done with it; auto: what its architecture is for
    """
    config = ConfigJson.read(path / "config.json")
    architecture = architecture_of(config)
    family = generating_form(architecture)
    if runner == "pooling" and family not in FAMILY:
        pooled = ", ".join(name.removesuffix("ForCausalLM") for name in FAMILY)
        raise ConfigError(
            f"{architecture} cannot give embeddings or scores here; supported are decoders of the "
            f"families {pooled}"
        )
    if family in FAMILY:
        pooling = _pooling(path, config, architecture, runner)
        spec = read_native(config, read_generation(path), family, max_model_len)
        return replace(spec, architecture=architecture, pooling=pooling)
    if architecture not in VERIFIED:
        remote = (
            " (code that comes with a checkpoint is never run)" if config.has("auto_map") else ""
        )
        supported = ", ".join([*FAMILY, *VERIFIED])
        raise ConfigError(f"{architecture} is not supported{remote}; supported are {supported}")
    from common.model.transformers_fallback import read_fallback  # transformers: seconds to import

    return read_fallback(path, config, architecture, max_model_len)


def _pooling(path: Path, config: ConfigJson, architecture: str, runner: Runner) -> Pooling | None:
    if architecture in FAMILY and runner != "pooling":
        return None
    if runner == "generate":
        raise ConfigError(f"{architecture} has no language head: start with --runner pooling")
    if architecture.endswith(CLASSIFIER):
        return read_classifier(config)
    return read_embedding(path, config)
