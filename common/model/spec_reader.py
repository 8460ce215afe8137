"""From a model directory to its `ModelSpec`. Imports transformers only for what runs through it."""

from __future__ import annotations

from pathlib import Path

from common.errors import ConfigError
from common.model.config_facts import architecture_of, read_generation
from common.model.config_json import ConfigJson
from common.model.fallback_table import VERIFIED
from common.model.llama_family import FAMILY, read_native
from common.model.spec import ModelSpec


def read_spec(path: Path, max_model_len: int | None = None) -> ModelSpec:
    """Describe the model in directory `path`; raises ConfigError with one clear line.

    max_model_len: shortens the context; longer than the model was made for is refused.
    """
    config = ConfigJson.read(path / "config.json")
    architecture = architecture_of(config)
    if architecture in FAMILY:
        return read_native(config, read_generation(path), architecture, max_model_len)
    if architecture not in VERIFIED:
        remote = (
            " (code that comes with a checkpoint is never run)" if config.has("auto_map") else ""
        )
        supported = ", ".join([*FAMILY, *VERIFIED])
        raise ConfigError(f"{architecture} is not supported{remote}; supported are {supported}")
    from common.model.transformers_fallback import read_fallback  # transformers: seconds to import

    return read_fallback(path, config, architecture, max_model_len)
