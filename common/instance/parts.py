"""From settings to an engine that can run: cores, device, weights, cache, driver."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from common.config import ServeConfig, parse_cores
from common.engine.driver import EngineDriver
from common.engine.engine import Engine
from common.engine.kv_cache import KVCache
from common.engine_client import ModelCard
from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineParts:
    path: Path
    card: ModelCard
    cache: KVCache
    engine: Engine
    driver: EngineDriver
    kv_fingerprint: str


def pin_to_cores(config: ServeConfig) -> None:
    """Pin this process, and size torch's thread pool, before any thread is started."""
    cores = parse_cores(config.cpu_cores)
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:
            raise ConfigError(f"--cpu-cores {config.cpu_cores}: {error.strerror}") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def choose_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
