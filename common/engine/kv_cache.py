"""The memory of the KV cache: its layout, its size, and where other processes can find it.

One block (K and V of all layers for `block_size` tokens) is contiguous: one descriptor to copy.
On a CPU the memory is an anonymous file (memfd): a peer on the same host can map it through
/proc/<pid>/fd/<fd>, and nothing is left behind however the process ends. Knows no owners.
"""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from common.engine.interface import EngineSettings
from common.errors import ConfigError
from common.model.spec import ModelSpec

LAYOUT_VERSION = 1
AUTOMATIC_LIMIT_BYTES = 4 << 30
FP8 = "float8_e4m3"  # what a cache of eight bits a number is made of; the scale is one
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    FP8: torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of one block: [layers, 2 (K, V), kv_heads, block_size, head_dim]."""

    num_layers: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, spec: ModelSpec, block_size: int, *, is_fp8: bool = False) -> KVLayout:
        """Keys and values in the model's dtype, or in eight bits."""
        dtype = FP8 if is_fp8 else spec.dtype
        return cls(spec.num_layers, spec.num_kv_heads, block_size, spec.head_dim, dtype)

    @property
    def block_shape(self) -> tuple[int, ...]:
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return prod(self.block_shape) * self.torch_dtype.itemsize


class KVCache:
    """`tensor`: [num_blocks, layers, 2, kv_heads, block_size, head_dim], zeros at first."""

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        device: torch.device,
        shared_fd: int | None = None,
    ) -> None:
        """Raises ConfigError if the memory cannot be had.

        shared_fd:  another process's cache (CPU), which is to be this one's too; it is closed
        """
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = device
        self.fd: int | None = None
        shape = (num_blocks, *layout.block_shape)
        try:
            if device.type == "cpu" and sys.platform == "linux":
                self.tensor = self._map_memfd(shape, shared_fd)
            else:
                self.tensor = torch.zeros(shape, dtype=layout.torch_dtype, device=device)
        except (OSError, torch.OutOfMemoryError) as error:
            raise ConfigError(
                f"no memory for a KV cache of {self.num_bytes} bytes "
                f"(--kv-cache-memory makes it smaller): {error}"
            ) from None

    @property
    def block_size(self) -> int:
        return self.layout.block_size

    @property
    def block_bytes(self) -> int:
        return self.layout.block_bytes

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def address(self) -> int:
        """Of block 0, in this process (CPU) or on the device."""
        return self.tensor.data_ptr()

    def close(self) -> None:
        """Close the file; the mapping lives as long as `tensor`. Idempotent."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _map_memfd(self, shape: tuple[int, ...], shared_fd: int | None) -> Tensor:
        # A peer maps it only once it is sealed against shrinking (kv_transfer/transport/shm.py).
        is_new = shared_fd is None
        self.fd = (
            os.memfd_create("xpyd-kv-cache", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            if shared_fd is None
            else shared_fd
        )
        try:
            if is_new:
                os.ftruncate(self.fd, self.num_bytes)
            memory = mmap.mmap(self.fd, self.num_bytes)
        except OSError:
            self.close()
            raise
        return torch.frombuffer(memory, dtype=self.layout.torch_dtype).view(shape)


def kv_fingerprint(
    model_fingerprint: str,
    layout: KVLayout,
    kernels: str,
    quantization: str | None = None,
    num_ranks: int = 1,
) -> str:
    """Equal for two instances exactly if one can use the other's blocks as they are.

    `name=value` pairs, so that a mismatch can say which. kernels: which face of them computed the
    keys and values; two faces round differently. quantization: of the weights that computed them.
    layout: of the whole model, however many ranks have a part of each block.
    """
    facts = {
        "layout": LAYOUT_VERSION,
        "model": model_fingerprint,
        "dtype": layout.dtype,
        "layers": layout.num_layers,
        "kv_heads": layout.num_kv_heads,
        "head_dim": layout.head_dim,
        "block_size": layout.block_size,
        "kernels": kernels,
        "quantization": quantization or "none",
    }
    if num_ranks > 1:
        facts["tensor_parallel"] = num_ranks
    return ",".join(f"{name}={value}" for name, value in facts.items())


def default_num_blocks(
    layout: KVLayout,
    settings: EngineSettings,
    *,
    kv_cache_memory: int | None = None,
    available_bytes: int,
    is_shared: bool = True,
) -> int:
    """How many blocks to make. Raises ConfigError if not even one full-length sequence fits.

    kv_cache_memory:  bytes the user wants to spend; None chooses
    available_bytes:  what the cache may take at most (`available_host_bytes()`, or a GPU's share)
    is_shared:        others need that memory too (a host's): take a modest part of it
    """
    blocks_per_seq = -(-settings.max_model_len // layout.block_size)
    if kv_cache_memory is not None:
        num_blocks = kv_cache_memory // layout.block_bytes
    else:
        wanted = settings.max_num_seqs * blocks_per_seq
        limit = min(AUTOMATIC_LIMIT_BYTES, available_bytes // 5) if is_shared else available_bytes
        # One sequence must fit: better more than the usual share than no server.
        least = min(blocks_per_seq, available_bytes // 2 // layout.block_bytes)
        num_blocks = max(least, min(wanted, limit // layout.block_bytes))
    if num_blocks < blocks_per_seq:
        raise ConfigError(
            f"a sequence of --max-model-len {settings.max_model_len} tokens needs "
            f"{blocks_per_seq * layout.block_bytes} bytes of KV cache, there is room for "
            f"{num_blocks * layout.block_bytes}: raise --kv-cache-memory or lower --max-model-len"
        )
    return num_blocks


def available_host_bytes() -> int:
    """Memory that this process can still get: the machine's, or its control group's if less."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit() and used[0].isdigit():
        available = min(available, max(0, int(limit[0]) - int(used[0])))
    return available


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
