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
from common.engine.kv_cache import KVCache, default_num_blocks, kv_fingerprint
from common.engine.pooler import Pooler
from common.engine_client import ModelCard
from common.errors import ConfigError
from common.instance.adapters import AdapterLimits, ServedAdapters
from common.instance.part import (
    available_bytes,
    choose_device,
    engine_settings,
    kv_layout,
    load_part,
    pin,
)
from common.instance.transfers import Transfers
from common.lora_modules import parse_lora_modules
from common.model.cuda_graphs import GraphedModel
from common.model.llama import Llama
from common.model.loader import CausalLM, model_fingerprint, resolve_model
from common.model.lora.adapter import Adapter, max_adapter_bytes
from common.model.lora.load import load_adapter
from common.model.shards import Shard, check_shards
from common.model.spec import ModelSpec, Pooling
from common.model.spec_reader import read_spec
from common.options import parse_cores
from common.parallel.channel import LineClosed
from common.parallel.cores import rank_cores
from common.parallel.group import check_backend
from common.parallel.led_model import LedModel
from common.parallel.processes import RankProcesses
from common.request import PooledOutput
from common.text import tokenizer_json
from kernels import native_library
from kernels.gpu.choice import has_fp8, has_triton, is_batch_invariant, set_batch_invariant

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineParts:
    path: Path
    card: ModelCard
    cache: KVCache
    engine: Engine
    driver: EngineDriver
    kv_fingerprint: str
    ranks: RankProcesses | None = None  # beside this process; it is rank 0
    transfers: Transfers = field(default_factory=Transfers)
    adapters: ServedAdapters | None = None  # None: without --enable-lora


@dataclass(frozen=True, slots=True)
class RankPlan:
    """How the other ranks of an instance are to be started."""

    program: str  # module that runs `common.instance.rank.run_rank`
    cores: list[list[int]]  # of each rank, this process first


def pin_to_cores(config: ServeConfig) -> list[list[int]]:
    """Pin this process, and size the thread pools, before any of their threads is started.

    The cores of each rank; this process is rank 0. Raises ConfigError.
    """
    named = parse_cores(config.cpu_cores)
    num_ranks = config.tensor_parallel_size
    available = sorted(named or os.sched_getaffinity(0))
    cores = rank_cores(available, num_ranks, are_named=bool(named))
    try:
        pin(cores[0])
    except OSError as error:
        raise ConfigError(f"--cpu-cores {config.cpu_cores}: {error.strerror}") from None
    return cores


def build_engine(config: ServeConfig, ranks: RankPlan | None = None) -> EngineParts:
    """Load the model and make everything around it. Raises ConfigError with one clear line.

    ranks:  what `config.tensor_parallel_size` above 1 needs; call it then in the main thread
    """
    path = resolve_model(config.model)
    if config.tensor_parallel_size == 1:
        return _build(config, path, choose_device(config.device), None)
    processes = _start_ranks(config, path, ranks)
    try:
        return _build(config, path, choose_device(config.device), processes)
    except LineClosed:
        processes.close()
        raise ConfigError("a tensor-parallel rank ended while it loaded") from None
    except BaseException:
        processes.close()
        raise


def _start_ranks(config: ServeConfig, path: Path, plan: RankPlan | None) -> RankProcesses:
    """What cannot be is refused before any process is started."""
    assert plan is not None, "nobody has said how ranks are started"
    spec = read_spec(path, config.max_model_len, config.wanted_runner)
    check_shards(spec, config.tensor_parallel_size)
    device = choose_device(config.device)
    check_backend(device, config.tensor_parallel_size)
    return RankProcesses(config, path, device, plan.cores, plan.program)


def _build(
    config: ServeConfig, path: Path, device: torch.device, ranks: RankProcesses | None
) -> EngineParts:
    began = time.monotonic()
    if config.batch_invariant:
        if device.type == "cuda" and not has_triton():
            raise ConfigError("--batch-invariant on a GPU needs triton, which is not installed")
        set_batch_invariant(True)
    if config.kv_cache_dtype == "fp8":
        _check_fp8_cache(device)
    model = load_part(config, path, device, None if ranks is None else ranks.group)
    if ranks is not None:
        ranks.wait_loaded()
    spec = model.spec
    settings = engine_settings(config, spec)
    name = config.served_model_name or Path(config.model.rstrip("/")).name
    pooled = None if spec.pooling is None else pooled_output(spec, spec.pooling, config)
    card = ModelCard(name, spec.max_model_len, int(time.time()), pooled=pooled)
    adapters = _adapters(config, card, spec, device) if config.enable_lora else None
    taken = _room_for_adapters(config, spec, adapters)
    cache = _make_cache(config, model, settings, device, ranks, taken)
    face = _kernel_face(device)
    identity = model_fingerprint(path, spec, spec.dtype, config.load_format, config.seed)
    fingerprint = kv_fingerprint(
        identity,
        kv_layout(config, spec),
        f"{device.type} {face}",
        config.quantization,
        config.tensor_parallel_size,
    )
    constraints = ConstraintCompiler(
        lambda: tokenizer_json(path), spec.vocab_size, spec.eos_token_ids
    )
    is_generating = spec.pooling is None
    if ranks is not None:
        model = LedModel(model, ranks)
    elif device.type == "cuda" and has_triton() and isinstance(model, Llama) and is_generating:
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
        cache.num_blocks,
        config.block_size,
        time.monotonic() - began,
    )
    driver = EngineDriver(engine)
    return EngineParts(
        path, card, cache, engine, driver, fingerprint, ranks=ranks, adapters=adapters
    )


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


def _make_cache(
    config: ServeConfig,
    model: CausalLM,
    settings: EngineSettings,
    device: torch.device,
    ranks: RankProcesses | None,
    taken: int,
) -> KVCache:
    """As many blocks as fit on every rank. taken: bytes that others of this process may need.

    In host memory the ranks share one pool, and each has its heads in it; of a GPU's, this rank's.
    """
    shard = Shard() if ranks is None or device.type == "cpu" else ranks.group.shard
    layout = kv_layout(config, shard.local(model.spec))

    def measured() -> int:
        return max(0, available_bytes(config, model, layout, device) - taken)

    num_blocks = default_num_blocks(
        layout,
        settings,
        kv_cache_memory=config.kv_cache_memory,
        available_bytes=measured() if ranks is None else ranks.measure(measured),
        is_shared=device.type == "cpu",
    )
    cache = KVCache(layout, num_blocks, device)
    if ranks is not None:
        ranks.make_caches(num_blocks, cache.fd)
    return cache


def _kernel_face(device: torch.device) -> str:
    """Which kernels run here; compiles the native ones the first time, which takes seconds."""
    if device.type == "cuda":
        mode = " batch-invariant" if is_batch_invariant() else ""
        return f"triton{mode}" if has_triton() else "torch"
    status = native_library.status()
    return f"native {status.reason}" if status.face == "native" else "torch"
