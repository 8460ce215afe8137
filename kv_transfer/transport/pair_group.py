"""A process group of two ranks, made and torn down by itself: gloo for host memory, nccl for GPUs.

There is no global world: each group meets over a TCPStore of its own, which the consumer serves
for as long as the pair lives. Every wait is bounded; after one that failed the group is of no more
use. Knows no blocks.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from common.errors import ConfigError

PRODUCER, CONSUMER = 0, 1  # ranks
FORM_S = 10.0  # for both ends to meet
STEP_S = 5.0  # for one send or receive: a few megabytes
POLL_S = 0.0002


class Group(Protocol):
    """What a pair's thread does with its group. Sending and receiving begin at once; the tensor is
    the group's until `wait` has returned. `wait` raises RuntimeError after STEP_S, or at once when
    the other end is known to have gone."""

    def send(self, tensor: Tensor) -> Any: ...
    def receive(self, tensor: Tensor) -> Any: ...
    def wait(self, work: Any) -> None: ...
    def abort(self) -> None: ...


class GlooGroup:
    def __init__(self, store: Store, rank: int, host: str) -> None:
        """`host`: the address of ours that the other end connects to."""
        gloo: Any = dist.ProcessGroupGloo  # whose type stubs leave most of it out
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=FORM_S)
        self._group = gloo(store, rank, 2, options)
        self._other = 1 - rank

    def send(self, tensor: Tensor) -> Any:
        return self._group.send([tensor], self._other, 0)

    def receive(self, tensor: Tensor) -> Any:
        return self._group.recv([tensor], self._other, 0)

    def wait(self, work: Any) -> None:
        work.wait(timedelta(seconds=STEP_S))

    def abort(self) -> None:
        self._group.abort()


class NcclGroup:
    """The thread waits for CUDA events, not for NCCL: that wait can be given up, and the group
    aborted, which ends the kernels of a peer that has gone."""

    def __init__(self, store: Store, rank: int, device: torch.device) -> None:
        # A peer that dies must cost us this group, not the process: NCCL's watchdog would end it.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
        nccl: Any = dist.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = timedelta(seconds=FORM_S)
        torch.cuda.set_device(device)  # of this thread
        self._device = device
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
        self._group = nccl(store, rank, 2, options)
        self._other = 1 - rank

    def send(self, tensor: Tensor) -> Any:
        return self._group.send([tensor], self._other, 0)

    def receive(self, tensor: Tensor) -> Any:
        return self._group.recv([tensor], self._other, 0)

    def wait(self, work: Any) -> None:
        deadline = time.monotonic() + STEP_S
        while not work.is_completed():
            if time.monotonic() >= deadline:
                raise RuntimeError("the peer did not answer in time")
            time.sleep(POLL_S)
        work.synchronize()  # our stream goes on after it; it has happened
        torch.cuda.current_stream(self._device).synchronize()

    def abort(self) -> None:
        self._group.abort()


def check_backend(device: torch.device) -> None:
    """Raises ConfigError if this build of torch has no backend for the device."""
    if not dist.is_available():
        raise ConfigError("connector nccl needs a torch with torch.distributed")
    if device.type == "cuda" and not dist.is_nccl_available():
        raise ConfigError("connector nccl needs a torch with NCCL for a KV pool on a GPU")
    if device.type == "cpu" and not dist.is_gloo_available():
        raise ConfigError("connector nccl needs a torch with gloo for a KV pool in host memory")


def serve_store(host: str) -> tuple[TCPStore, int]:
    """A store on a free port of `host`, and the port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    port: int = listener.getsockname()[1]
    return _store(host, port, listener.detach()), port


def join_store(host: str, port: int) -> TCPStore:
    return _store(host, port, None)


def _store(host: str, port: int, listener: int | None) -> TCPStore:
    return TCPStore(
        host,
        port,
        world_size=2,
        is_master=listener is not None,
        timeout=timedelta(seconds=FORM_S),
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def make_group(store: TCPStore, name: str, rank: int, host: str, device: torch.device) -> Group:
    """Blocks until the other end has come, at most FORM_S. Raises RuntimeError kinds.

    `name` is the pair's secret: who does not know it does not find the keys of the meeting.
    """
    prefixed = PrefixStore(name, store)
    if device.type == "cuda":
        return NcclGroup(prefixed, rank, device)
    return GlooGroup(prefixed, rank, host)
