"""Causal language models outside the native family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.errors import ConfigError

if TYPE_CHECKING:
    from common.model.loader import CausalLM
    from common.model.spec import ModelSpec


def fallback_spec(path: Path, max_model_len: int | None) -> ModelSpec:
    raise ConfigError("this architecture is not supported")


def load_fallback(
    path: Path, spec: ModelSpec, *, load_format: str, seed: int, device: torch.device
) -> CausalLM:
    raise ConfigError("this architecture is not supported")
