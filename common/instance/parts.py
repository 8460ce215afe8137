"""From settings to an engine that can run: cores, device, weights, cache, driver."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.config import ServeConfig
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
from common.engine.pooler import Pooler
from common.engine_client import ModelCard
from common.errors import ConfigError
from common.instance.adapters import AdapterLimits, ServedAdapters
from common.instance.transfers import Transfers
from common.lora_modules import parse_lora_modules
from common.model.cuda_graphs import GraphedModel
from common.model.llama import Llama
from common.model.loader import CausalLM, load_model, model_fingerprint, resolve_model
from common.model.lora.adapter import Adapter, max_adapter_bytes
from common.model.lora.load import load_adapter
from common.model.spec import ModelSpec, Pooling
from common.model.step_memory import peak_step_bytes
from common.options import parse_cores
from common.request import PooledOutput
from common.text import tokenizer_json
from kernels import native_library
from kernels.gpu.choice import has_fp8, has_triton, is_batch_invariant, set_batch_invariant

_GRAPHS = 2  # captured graphs keep what a step needs in memory of their own

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
    adapters: ServedAdapters | None = None  # None: without --enable-lora


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
    if config.batch_invariant:
        if device.type == "cuda" and not has_triton():
            raise ConfigError("--batch-invariant on a GPU needs triton, which is not installed")
        set_batch_invariant(True)
    path = resolve_model(config.model)
    model = load_model(
        path,
        dtype=config.dtype,
        load_format=config.load_format,
        seed=config.seed,
        device=device,
        max_model_len=config.max_model_len,
        runner=config.wanted_runner,
        quantization=config.quantization,
    )
    spec = model.spec
    settings = _settings(config, spec)
    is_fp8 = config.kv_cache_dtype == "fp8"
    if is_fp8:
        _check_fp8_cache(device)
    layout = KVLayout.of(spec, config.block_size, is_fp8=is_fp8)
    name = config.served_model_name or Path(config.model.rstrip("/")).name
    pooled = None if spec.pooling is None else pooled_output(spec, spec.pooling, config)
    card = ModelCard(name, spec.max_model_len, int(time.time()), pooled=pooled)
    adapters = _adapters(config, card, spec, device) if config.enable_lora else None
    num_blocks = default_num_blocks(
        layout,
        settings,
        kv_cache_memory=config.kv_cache_memory,
        available_bytes=max(
            0,
            _available_bytes(model, layout, settings, device, config)
            - _room_for_adapters(config, spec, adapters),
        ),
        is_shared=device.type == "cpu",
    )
    cache = KVCache(layout, num_blocks, device)
    face = _kernel_face(device)
    identity = model_fingerprint(path, spec, spec.dtype, config.load_format, config.seed)
    fingerprint = kv_fingerprint(identity, layout, f"{device.type} {face}", config.quantization)
    constraints = ConstraintCompiler(
        lambda: tokenizer_json(path), spec.vocab_size, spec.eos_token_ids
    )
    is_generating = spec.pooling is None
    if device.type == "cuda" and has_triton() and isinstance(model, Llama) and is_generating:
        model = _made_fast(model, cache, settings, config)
    # Other ranks are told the tokens by this one, which has to know them.
    is_in_turns = config.enforce_eager or config.tensor_parallel_size > 1
    engine = Engine(
        model,
        cache,
        settings,
        spec.eos_token_ids,
        fingerprint,
        constraints=constraints,
        is_overlapped=device.type == "cuda" and not is_in_turns,
        adapters=None if adapters is None else adapters.find,
        pooler=None if spec.pooling is None else Pooler(spec.pooling.method),
    )
    log.info(
        "%s on %s (%s kernels, %s weights): %d blocks of %d tokens, ready in %.1f s",
        name,
        device.type,
        face,
        config.quantization or spec.dtype,
        num_blocks,
        config.block_size,
        time.monotonic() - began,
    )
    driver = EngineDriver(engine)
    return EngineParts(path, card, cache, engine, driver, fingerprint, adapters=adapters)


def pooled_output(spec: ModelSpec, pooling: Pooling, config: ServeConfig) -> PooledOutput:
    """What clients may know of the vectors. Raises ConfigError for a role that cannot make them."""
    config.check_pools(f"{spec.architecture}, which gives vectors,")
    return PooledOutput(
        len(pooling.labels) or spec.hidden_size,
        pooling.is_normalized,
        pooling.labels,
        pooling.can_shorten,
    )


def _adapters(
    config: ServeConfig, card: ModelCard, spec: ModelSpec, device: torch.device
) -> ServedAdapters:
    """With those of the start in it. Raises ConfigError."""
    if spec.llama is None:
        raise ConfigError(f"--enable-lora: {spec.architecture} cannot have LoRA adapters here")

    def read(directory: Path, root: Path | None) -> Adapter:
        return load_adapter(
            directory, spec, max_rank=config.max_lora_rank, device=device, root=root
        )

    limits = AdapterLimits(config.max_loras, config.lora_root, config.drain_timeout_s)
    adapters = ServedAdapters(read, card, limits)
    for source in parse_lora_modules(config.lora_modules):
        adapters.load_now(source)
    return adapters


def _room_for_adapters(
    config: ServeConfig, spec: ModelSpec, adapters: ServedAdapters | None
) -> int:
    """Bytes of those that may still be loaded."""
    if adapters is None or spec.llama is None:
        return 0
    return adapters.num_free * max_adapter_bytes(spec, spec.llama, config.max_lora_rank)


def _made_fast(
    model: Llama, cache: KVCache, settings: EngineSettings, config: ServeConfig
) -> CausalLM:
    """On a GPU: with tuned kernels, and CUDA graphs. Batch-invariant kernels have one shape."""
    from common.model.tuning import tune_kernels  # triton, which not every machine has
    from kernels.gpu.tuning import Tuner, device_file, launch_seconds

    if config.batch_invariant:
        return model
    tuner = Tuner(device_file(), launch_seconds)
    num_seqs, num_tokens = settings.max_num_seqs, settings.max_num_batched_tokens
    tune_kernels(model, cache.tensor, num_seqs, num_tokens, tuner)
    if config.enforce_eager:
        return model
    return GraphedModel(model, cache.tensor, num_seqs)


def _check_fp8_cache(device: torch.device) -> None:
    if device.type == "cpu":
        log.warning(
            "--kv-cache-dtype fp8 on a CPU: attention runs in plain torch, many times slower"
        )
    elif not has_fp8(device):
        raise ConfigError("--kv-cache-dtype fp8 needs a GPU of compute capability 8.9 or newer")


def _settings(config: ServeConfig, spec: ModelSpec) -> EngineSettings:
    return EngineSettings(
        max_model_len=spec.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
        max_num_waiting=config.max_num_waiting,
        enable_prefix_caching=config.enable_prefix_caching,
    )


def _kernel_face(device: torch.device) -> str:
    """Which kernels run here; compiles the native ones the first time, which takes seconds."""
    if device.type == "cuda":
        mode = " batch-invariant" if is_batch_invariant() else ""
        return f"triton{mode}" if has_triton() else "torch"
    status = native_library.status()
    return f"native {status.reason}" if status.face == "native" else "torch"


def _available_bytes(
    model: CausalLM,
    layout: KVLayout,
    settings: EngineSettings,
    device: torch.device,
    config: ServeConfig,
) -> int:
    """What a KV cache may take. On a GPU: the share asked for, less what is in use already and
    what the largest step needs."""
    if device.type == "cpu":
        return available_host_bytes()
    num_tokens = min(settings.max_num_batched_tokens, settings.max_model_len)
    step = peak_step_bytes(
        model, layout.block_shape, layout.torch_dtype, num_tokens, settings.max_num_seqs
    )
    free, total = torch.cuda.mem_get_info(device)
    in_use = total - free
    return max(0, int(total * config.gpu_memory_utilization) - in_use - _GRAPHS * step)
