"""Collectives among the ranks of one instance: gloo between host memories, NCCL between GPUs.

A sum has one order. Where `in_order` is set (on CPUs always), each rank gathers all parts and adds
them up in float32 by rank, so that a row's sum depends on nothing but its parts: not on the batch,
nor on what an algorithm of NCCL's makes of its size. Otherwise NCCL adds, which is faster.

The ranks are on one machine, and meet over a file in memory that they inherit; what gloo opens
between them is on the loopback interface. Every wait has a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore, Store

from common.errors import ConfigError
from common.model.shards import Shard

HOST = "127.0.0.1"
MEET_S = 60.0  # for all ranks to come: each has said that it is about to
STEP_S = 20.0  # for a collective: the ranks do the same, so none comes much later than another

_ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_ENDS_THE_PROCESS = "3"


class GroupRanks:
    """What `common/model/ranks.py` asks for, and the broadcast of a step's inputs.

    After a collective that raised, the ranks have lost step: the group is of no more use.
    """

    def __init__(
        self,
        group: Any,
        shard: Shard,
        device: torch.device,
        *,
        in_order: bool,
        step_s: float = STEP_S,
    ) -> None:
        """`group`: a process group of torch's, of this device's backend. A collective of gloo's
        that takes longer than `step_s` raises RuntimeError."""
        self._group = group
        self._group._set_default_timeout(timedelta(seconds=step_s))
        self._shard = shard
        self._device = device
        self._in_order = in_order

    @property
    def shard(self) -> Shard:
        return self._shard

    @property
    def is_wide(self) -> bool:
        return self._in_order

    def sum(self, part: Tensor) -> Tensor:
        part = part.contiguous()
        if not part.numel():
            return part
        if not self._in_order:
            self._wait(self._group.allreduce([part]))
            return part
        count = self._shard.num_ranks
        parts = part.new_empty(count * part.shape[0], *part.shape[1:])
        self._wait(self._group._allgather_base(parts, part))
        parts = parts.view(count, *part.shape)
        total = parts[0]
        for other in parts[1:]:
            total += other
        return total

    def gather_columns(self, part: Tensor) -> Tensor:
        part = part.contiguous()
        count = self._shard.num_ranks
        if not part.numel():
            return part.new_empty(part.shape[0], count * part.shape[1])
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(part) for _ in range(count)] if self._shard.rank == 0 else []
        self._wait(self._group.gather([parts] if parts else [], [part], options))
        return torch.cat(parts, dim=1) if parts else part

    def broadcast(self, tensor: Tensor) -> None:
        """From rank 0, in place."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._wait(self._group.broadcast([tensor], options))

    def meet(self) -> None:
        """Wait until all ranks have come so far."""
        self.broadcast(torch.zeros(1, device=self._device))
        self.sum(torch.zeros(1, device=self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _wait(self, work: Any) -> None:
        """Gloo's are waited for here; NCCL's only by the stream, and by NCCL's watchdog."""
        work.wait()


def make_store(fd: int, num_ranks: int) -> Store:
    """Where ranks find each other: a file in memory (memfd), open in each of them as `fd`."""
    return FileStore(f"/proc/self/fd/{fd}", num_ranks)


def make_group(
    store: Store,
    shard: Shard,
    device: torch.device,
    *,
    in_order: bool,
    step_s: float = STEP_S,
) -> GroupRanks:
    """Blocks until all ranks have come. Raises RuntimeError if they do not.

    in_order:  add up by rank on a GPU as well (`--batch-invariant`)
    """
    prefixed = PrefixStore("ranks", store)
    if device.type == "cuda":
        return GroupRanks(_nccl(prefixed, shard, device), shard, device, in_order=in_order)
    return GroupRanks(_gloo(prefixed, shard), shard, device, in_order=True, step_s=step_s)


def check_backend(device: torch.device, num_ranks: int) -> None:
    """Raises ConfigError if so many ranks cannot be here."""
    flag = f"--tensor-parallel-size {num_ranks}"
    if device.type == "cuda":
        if torch.cuda.device_count() < num_ranks:
            raise ConfigError(f"{flag}: torch sees {torch.cuda.device_count()} GPUs here")
        if not dist.is_available() or not dist.is_nccl_available():
            raise ConfigError(f"{flag} needs a torch with NCCL")
    elif not hasattr(os, "memfd_create"):
        raise ConfigError(f"{flag} needs Linux")
    elif not dist.is_available() or not dist.is_gloo_available():
        raise ConfigError(f"{flag} needs a torch with gloo")


def _gloo(store: Store, shard: Shard) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # whose type stubs leave most of it out
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=HOST)]
    options._timeout = timedelta(seconds=MEET_S)
    return gloo(store, shard.rank, shard.num_ranks, options)


def _nccl(store: Store, shard: Shard, device: torch.device) -> Any:
    """A peer that has gone or hangs ends this process: NCCL cannot go on without it."""
    nccl: Any = dist.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timedelta(seconds=STEP_S)
    torch.cuda.set_device(device)
    with _environment(_ERROR_HANDLING, _ENDS_THE_PROCESS):
        return nccl(store, shard.rank, shard.num_ranks, options)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Connector nccl wants another value for its pairs (kv_transfer/transport/pair_group.py)."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
