"""From a directory in PEFT's format to an adapter: read with bounds, checked before it is believed.

Safetensors only. Nothing is read that the model's shapes and the highest rank do not allow.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import torch

from common.errors import ConfigError, PermissionDenied
from common.model.lora import peft_config, tensors
from common.model.lora.adapter import Adapter, build_adapter
from common.model.lora.peft_config import read_peft_config
from common.model.lora.tensors import max_file_bytes, read_tensors
from common.model.spec import ModelSpec

OUTSIDE = "an adapter must lie inside --lora-root, links included"


def load_adapter(
    directory: Path,
    spec: ModelSpec,
    *,
    max_rank: int,
    device: torch.device,
    root: Path | None = None,
) -> Adapter:
    """root: no file may lie outside of it, whatever links there are; None: the caller trusts.

    Raises ConfigError, or PermissionDenied for what lies outside.
    """
    shape = spec.llama
    if shape is None:
        raise ConfigError(f"{spec.architecture} cannot have LoRA adapters (native models can)")
    config_data = _read(directory, peft_config.FILE, peft_config.MAX_BYTES, root)
    config = read_peft_config(bytes(config_data), max_rank)
    data = _read(directory, tensors.FILE, max_file_bytes(spec, shape, config.rank), root)
    pairs = read_tensors(data, spec, shape, config.rank)
    digest = hashlib.sha256(f"{config.scale!r} ".encode())
    digest.update(data)
    return build_adapter(digest.hexdigest(), pairs, config.scale, spec, shape, device)


def directory_inside(root: Path, text: str) -> Path:
    """`text`, absolute or relative to `root`, if it is a directory in there.

    Raises ConfigError, or PermissionDenied. Of what lies outside nothing is told, not even whether
    it exists.
    """
    if "://" in text or "\0" in text:
        raise ConfigError("lora_path must be a directory, not an address")
    resolved = Path(os.path.realpath(root / text))
    _check_inside(resolved, root)
    if not resolved.is_dir():
        raise ConfigError("lora_path is no directory under --lora-root")
    return resolved


def _check_inside(resolved: Path, root: Path) -> None:
    if not resolved.is_relative_to(os.path.realpath(root)):
        raise PermissionDenied(OUTSIDE)


def _read(directory: Path, name: str, max_bytes: int, root: Path | None) -> bytearray:
    path = Path(os.path.realpath(directory / name))
    if root is not None:
        _check_inside(path, root)
    try:
        # NONBLOCK: opening a FIFO must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"the adapter has no {name} (other formats are not read)") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be opened: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{name} is not a regular file")
        if status.st_size > max_bytes:
            raise ConfigError(
                f"{name} has {status.st_size} bytes, the model's shapes and r allow {max_bytes}"
            )
        data = bytearray(status.st_size)
        if file.readinto(data) != len(data):
            raise ConfigError(f"{name} ended early")
        return data
