"""From a model's name to a model that runs: find the directory, describe it, load the weights."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from common.errors import ConfigError
from common.model.checkpoint import (
    Checkpoint,
    DummyWeights,
    canonical,
    header_and_samples,
    weight_files,
)
from common.model.config_json import ConfigJson
from common.model.inputs import ForwardInputs
from common.model.llama import Llama
from common.model.ranks import Ranks
from common.model.shards import check_shards
from common.model.spec import DTYPES, ModelSpec, Runner
from common.model.spec_reader import read_spec
from kernels.gpu.choice import has_fp8
from kernels.quantize import Quantization

LoadFormat = Literal["auto", "dummy"]

# What a model directory needs to hold; everything else in a repository stays where it is.
WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# (no directories but 1_Pooling, as sentence-transformers calls it)
UNWANTED_FILES = ["consolidated*", "original/*", "[!1]*/*"]


class CausalLM(Protocol):
    @property
    def spec(self) -> ModelSpec:
        """Its dtype is the one in use."""

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """Write this step's K and V into `cache`; return logits [rows, vocab] float32.

        cache: [blocks, layers, 2, kv_heads, block_size, head_dim] of `spec.dtype`
        """


def resolve_model(name_or_dir: str) -> Path:
    """A local directory as it is; else a Hugging Face name, downloaded or found in its cache."""
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{name_or_dir} is not a model directory: it has no config.json")
        return path
    if path.is_absolute() or name_or_dir.startswith((".", "~")) or name_or_dir.count("/") > 1:
        raise ConfigError(f"{name_or_dir} does not exist")
    from huggingface_hub import snapshot_download  # slow import, and only names need it
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            name_or_dir, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES
        )
    except (OSError, ValueError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{name_or_dir} is neither a directory nor a model that can be downloaded: {reason}"
        ) from error
    return Path(found)


def load_model(
    path: Path,
    *,
    dtype: str = "auto",
    load_format: LoadFormat = "auto",
    seed: int = 0,
    device: torch.device,
    max_model_len: int | None = None,
    runner: Runner = "auto",
    ranks: Ranks | None = None,
    quantization: Quantization | None = None,
) -> CausalLM:
    """The model in directory `path`, ready to run. Raises ConfigError with one clear line.

    dtype:        auto is the config's; weights are converted to it
    load_format:  dummy makes weights up from `seed`, and needs no files but config.json
    runner:       is text generated with it, or is a text turned into a vector?
    ranks:        who else runs it; each loads its own part
    quantization: what weights become as they are loaded; embeddings and KV cache stay in dtype
    """
    if quantization == "fp8":
        _check_fp8(device)
    spec = with_dtype(read_spec(path, max_model_len, runner), dtype)
    if ranks is not None:
        check_shards(spec, ranks.shard.num_ranks)
    if spec.llama is None:
        from common.model.transformers_fallback import load_fallback  # slow import

        return load_fallback(
            path,
            spec,
            load_format=load_format,
            seed=seed,
            device=device,
            quantization=quantization,
        )
    if load_format == "dummy":
        made_up = DummyWeights(seed, spec.llama.initializer_range)
        return Llama(spec, spec.llama, made_up, device, ranks, quantization)
    with Checkpoint(path) as weights:
        return Llama(spec, spec.llama, weights, device, ranks, quantization)


def _check_fp8(device: torch.device) -> None:
    if device.type == "cpu":
        raise ConfigError("--quantization fp8 needs a GPU; on a CPU there is int8")
    if not has_fp8(device):
        raise ConfigError("--quantization fp8 needs a GPU of compute capability 8.9 or newer")


def with_dtype(spec: ModelSpec, dtype: str) -> ModelSpec:
    """`auto` resolved once, into a new spec."""
    if dtype == "auto":
        return spec
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be auto or one of {', '.join(DTYPES)}, not {dtype}")
    return replace(spec, dtype=dtype)


def model_fingerprint(
    path: Path, spec: ModelSpec, dtype: str, load_format: LoadFormat, seed: int
) -> str:
    """Equal on two instances if and only if (but for deliberate forgery) K and V are exchangeable.

    Hex sha256 over what shapes them: the network, dtype, and the weights' names, sizes, headers and
    some samples, or the seed of made-up ones. Reads a few hundred KiB. `max_model_len`, end ids
    and sampling defaults are left out: they change no key and no value.
    """
    facts = asdict(with_dtype(spec, dtype))
    for name in ("max_model_len", "eos_token_ids", "bos_token_id", "default_sampling"):
        del facts[name]
    digest = hashlib.sha256(canonical(facts))
    if spec.llama is None:
        config = ConfigJson.read(path / "config.json").values
        digest.update(canonical({k: v for k, v in config.items() if not k.startswith("_")}))
    if load_format == "dummy":
        digest.update(f"dummy {seed}".encode())
        return digest.hexdigest()
    for file_name in sorted(weight_files(path)):
        file = path / file_name
        digest.update(f"{file_name} {file.stat().st_size} ".encode())
        for part in header_and_samples(file):
            digest.update(part)
    return digest.hexdigest()
