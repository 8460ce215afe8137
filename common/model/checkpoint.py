"""Weights by name: from safetensors files, or made up. Knows no network.

A `Weights` gives one tensor at a time, so that packing it before asking for the next keeps peak
memory near the packed weights plus one tensor: the files are mapped, never read as a whole.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import struct
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import ConfigError
from common.model.config_json import ConfigJson
from common.model.shards import Part

INDEX = "model.safetensors.index.json"
_BODY = "model."
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


class Weights(Protocol):
    def copy_into(self, target: Tensor, name: str, part: Part | None = None) -> None:
        """Fill `target` with the tensor called `name`, or with a part of it, converted to target's
        dtype and device.

        Raises ConfigError, naming the tensor, when it is missing or its shape or dtype is wrong.
        """

    def finish(self, ignorable: Iterable[str]) -> None:
        """Raise ConfigError for a tensor never asked for, unless its name ends in `ignorable`."""


@dataclass(slots=True)
class Checkpoint:
    """Safetensors files, mapped into memory while the `with` lasts."""

    path: Path
    _files: dict[str, Any] = field(default_factory=dict)  # tensor name → open file
    _taken: set[str] = field(default_factory=set)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Checkpoint:
        try:
            for file_name, expected in weight_files(self.path).items():
                self._open(file_name, expected)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def copy_into(self, target: Tensor, name: str, part: Part | None = None) -> None:
        """Of a part, only its bytes are read."""
        bare = name.removeprefix(_BODY)  # of a model that was stored without any head
        if name not in self._files and bare not in self._files:
            raise ConfigError(f"the checkpoint has no tensor {name}")
        name = name if name in self._files else bare
        view = self._files[name].get_slice(name)
        shape = tuple(view.get_shape())
        expected = tuple(target.shape) if part is None else part.shape
        if shape != expected:
            raise ConfigError(f"tensor {name} has shape {shape}, config.json asks for {expected}")
        if view.get_dtype() not in FLOAT_DTYPES:
            raise ConfigError(f"tensor {name} has dtype {view.get_dtype()}, which is not supported")
        mapped: Tensor = self._files[name].get_tensor(name)
        if part is None:
            target.copy_(mapped)
        else:
            target.copy_(mapped.narrow(part.axis, part.start, part.stop - part.start))
        _let_go(mapped)
        self._taken.add(name)

    def finish(self, ignorable: Iterable[str]) -> None:
        endings = tuple(ignorable)
        extra = sorted(n for n in self._files if n not in self._taken and not n.endswith(endings))
        if extra:
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            raise ConfigError(
                f"the checkpoint has tensors this model does not use: {', '.join(extra[:3])}{more}"
            )

    def _open(self, file_name: str, expected: set[str] | None) -> None:
        try:
            file = self._stack.enter_context(safe_open(self.path / file_name, framework="pt"))
            names = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{file_name} cannot be read: {error}") from error
        if expected is not None and not expected <= names:
            raise ConfigError(f"{file_name} has no tensor {min(expected - names)}, {INDEX} says so")
        self._files.update(dict.fromkeys(names, file))


def _let_go(mapped: Tensor) -> None:
    """Its pages are in the page cache, or can be read again: they need not count as ours."""
    if sys.platform != "linux" or not mapped.numel():
        return
    first = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


def weight_files(path: Path) -> dict[str, set[str] | None]:
    """Safetensors files of a model directory, each with the tensors the index promises in it."""
    if (path / INDEX).is_file():
        placed = ConfigJson.read(path / INDEX).table("weight_map").values
        files: dict[str, set[str] | None] = {}
        for name, file_name in placed.items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise ConfigError(f"{INDEX}: {name} lies in a file that is not beside it")
            tensors = files.setdefault(file_name, set())
            assert tensors is not None
            tensors.add(name)
        for file_name in files:
            if not (path / file_name).is_file():
                raise ConfigError(f"{file_name}, named by {INDEX}, is missing")
        return files
    if (path / "model.safetensors").is_file():
        return {"model.safetensors": None}
    raise ConfigError("the model directory has no model.safetensors (other formats are not read)")


@dataclass(frozen=True, slots=True)
class DummyWeights:
    """Random weights like a fresh initialisation: the same for one seed on every machine.

    Matrices are normal with deviation `std`, biases zero, norm weights one. Each tensor has a
    generator of its own, so the order of asking does not matter.
    """

    seed: int
    std: float

    def copy_into(self, target: Tensor, name: str, part: Part | None = None) -> None:
        if target.dim() > 1 and part is not None:
            whole = torch.empty(part.shape, dtype=target.dtype)
            fill_normal(whole, self.seed, name, self.std)
            target.copy_(whole.narrow(part.axis, part.start, part.stop - part.start))
        elif target.dim() > 1:
            fill_normal(target, self.seed, name, self.std)
        else:
            target.fill_(0.0 if name.endswith("bias") else 1.0)

    def finish(self, ignorable: Iterable[str]) -> None:
        """Nothing can be left over."""


def fill_normal(target: Tensor, seed: int, name: str, std: float) -> None:
    """Fill with normal numbers that depend on (seed, name, shape) only.

    numpy's generator, not torch's: torch's results differ with the CPU's vector width.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    rows = target.view(-1, target.shape[-1])
    step = max(1, (1 << 22) // rows.shape[1])  # 16 MiB of float32 at a time
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        drawn = generator.standard_normal(tuple(part.shape), dtype=np.float32)
        part.copy_(torch.from_numpy(drawn).mul_(std))


def header_and_samples(path: Path, samples: int = 16, sample_bytes: int = 4096) -> Iterable[bytes]:
    """What tells one safetensors file from another at little cost: its header, spread samples."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = min(struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0], size - 8)
        yield file.read(max(0, header_bytes))
        for i in range(samples):
            file.seek(8 + header_bytes + (size - 8 - header_bytes) * i // samples)
            yield file.read(sample_bytes)


def canonical(value: object) -> bytes:
    """One spelling for equal JSON values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
