"""From settings to an engine that can run: cores, device, weights, cache, driver."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.config import ServeConfig, parse_cores
from common.engine.constraint_compiler import ConstraintCompiler
from common.engine.driver import EngineDriver
from common.engine.engine import Engine
from common.engine.interface import EngineSettings
from common.engine.kv_cache import (
    KVCache,
    KVLayout,
    available_host_bytes,
    default_num_blocks,
    kv_fingerprint,
)
from common.engine_client import ModelCard
from common.errors import ConfigError
from common.instance.transfers import Transfers
from common.model.loader import load_model, model_fingerprint, resolve_model
from common.text import tokenizer_json
from kernels import native_library

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineParts:
    path: Path
    card: ModelCard
    cache: KVCache
    engine: Engine
    driver: EngineDriver
    kv_fingerprint: str
    transfers: Transfers = field(default_factory=Transfers)


def pin_to_cores(config: ServeConfig) -> None:
    """Pin this process, and size the thread pools, before any of their threads is started."""
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


def build_engine(config: ServeConfig) -> EngineParts:
    """Load the model and make everything around it. Raises ConfigError with one clear line."""
    began = time.monotonic()
    device = choose_device(config.device)
    path = resolve_model(config.model)
    model = load_model(
        path,
        dtype=config.dtype,
        load_format=config.load_format,
        seed=config.seed,
        device=device,
        max_model_len=config.max_model_len,
    )
    spec = model.spec
    settings = EngineSettings(
        max_model_len=spec.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
        max_num_waiting=config.max_num_waiting,
        enable_prefix_caching=config.enable_prefix_caching,
    )
    layout = KVLayout.of(spec, config.block_size)
    num_blocks = default_num_blocks(
        layout,
        settings,
        kv_cache_memory=config.kv_cache_memory,
        available_bytes=_available_bytes(device, config.gpu_memory_utilization),
        is_shared=device.type == "cpu",
    )
    cache = KVCache(layout, num_blocks, device)
    face = _kernel_face()
    identity = model_fingerprint(path, spec, spec.dtype, config.load_format, config.seed)
    fingerprint = kv_fingerprint(identity, layout, f"{device.type} {face}")
    constraints = ConstraintCompiler(
        lambda: tokenizer_json(path), spec.vocab_size, spec.eos_token_ids
    )
    engine = Engine(
        model, cache, settings, spec.eos_token_ids, fingerprint, constraints=constraints
    )
    name = config.served_model_name or Path(config.model.rstrip("/")).name
    log.info(
        "%s on %s (%s kernels): %d blocks of %d tokens, ready in %.1f s",
        name,
        device.type,
        face,
        num_blocks,
        config.block_size,
        time.monotonic() - began,
    )
    card = ModelCard(name, spec.max_model_len, int(time.time()))
    return EngineParts(path, card, cache, engine, EngineDriver(engine), fingerprint)


def _kernel_face() -> str:
    """Which kernels run here; compiles the native ones the first time, which takes seconds."""
    status = native_library.status()
    return f"native {status.reason}" if status.face == "native" else "torch"


def _available_bytes(device: torch.device, utilization: float) -> int:
    """What a KV cache may take. On a GPU: the share asked for, less what is in use already."""
    if device.type == "cpu":
        return available_host_bytes()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(total * utilization) - (total - free))
