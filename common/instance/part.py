"""What every rank of an instance does for itself: its cores, its device, its part of the weights,
the memory it can spare. An instance with one rank is its own rank 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from common.config import ServeConfig
from common.engine.interface import EngineSettings
from common.engine.kv_cache import KVLayout, available_host_bytes
from common.errors import ConfigError
from common.model.loader import CausalLM, load_model
from common.model.ranks import Ranks
from common.model.spec import ModelSpec
from common.model.step_memory import peak_step_bytes

_GRAPHS = 2  # captured graphs keep what a step needs in memory of their own


def pin(cores: Sequence[int]) -> None:
    """This thread and those it starts, and the thread pools to their number. Raises OSError."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))


def choose_device(wanted: str, rank: int = 0) -> torch.device:
    """A rank's own GPU, by its number among the visible ones; or the CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and rank:
        return torch.device("cuda", rank)
    return torch.device(wanted)


def load_part(
    config: ServeConfig, path: Path, device: torch.device, ranks: Ranks | None = None
) -> CausalLM:
    """The model, or this rank's part of it. Raises ConfigError with one clear line."""
    return load_model(
        path,
        dtype=config.dtype,
        load_format=config.load_format,
        seed=config.seed,
        device=device,
        max_model_len=config.max_model_len,
        ranks=ranks,
        runner=config.wanted_runner,
        quantization=config.quantization,
    )


def kv_layout(config: ServeConfig, spec: ModelSpec) -> KVLayout:
    """spec: of the whole model, or of a rank's part."""
    return KVLayout.of(spec, config.block_size, is_fp8=config.kv_cache_dtype == "fp8")


def engine_settings(config: ServeConfig, spec: ModelSpec) -> EngineSettings:
    return EngineSettings(
        max_model_len=spec.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
        max_num_waiting=config.max_num_waiting,
        enable_prefix_caching=config.enable_prefix_caching,
    )


def available_bytes(
    config: ServeConfig, model: CausalLM, layout: KVLayout, device: torch.device
) -> int:
    """What a KV cache may take. On a GPU: the share asked for, less what is in use already and
    what the largest step needs."""
    if device.type == "cpu":
        return available_host_bytes()
    settings = engine_settings(config, model.spec)
    num_tokens = min(settings.max_num_batched_tokens, settings.max_model_len)
    step = peak_step_bytes(
        model, layout.block_shape, layout.torch_dtype, num_tokens, settings.max_num_seqs
    )
    free, total = torch.cuda.mem_get_info(device)
    in_use = total - free
    return max(0, int(total * config.gpu_memory_utilization) - in_use - _GRAPHS * step)
