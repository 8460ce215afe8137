"""The program of a rank from 1 on: loads its part of a model and takes part in rank 0's steps.

It has no scheduler, no sampler, no HTTP and no clients; it does what rank 0 says, in order, and
ends when rank 0 does, however that ends.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from common.engine.kv_cache import KVCache
from common.errors import ConfigError
from common.instance.part import available_bytes, choose_device, kv_layout, load_part, pin
from common.model.loader import CausalLM
from common.model.shards import Shard
from common.parallel.channel import (
    Channel,
    Failed,
    Here,
    Job,
    LineClosed,
    Loaded,
    MakeCache,
    Measure,
    Measured,
    Ready,
    Step,
    Stop,
)
from common.parallel.group import GroupRanks, make_group, make_store
from common.parallel.pool import own_heads
from common.parallel.step_inputs import room_for, unflatten
from kernels.gpu.choice import set_batch_invariant

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
JOB_S = 60.0

AnyToRank = Job | Measure | MakeCache | Step | Stop


def run_rank(line_fd: int, store_fd: int) -> int:
    """Blocks until rank 0 says so or is gone; the exit status."""
    channel: Channel[AnyToRank] = Channel(
        socket.socket(fileno=line_fd),
        AnyToRank,  # type: ignore[arg-type]
    )
    try:
        job = channel.receive(JOB_S)
        assert isinstance(job, Job), f"{job} is no job"
        _die_with(job.leader_pid)
        logging.basicConfig(
            level=os.environ.get("XPYD_LOG_LEVEL", "INFO").upper(),
            format=f"%(asctime)s %(levelname).1s rank {job.rank} %(name)s: %(message)s",
        )
        try:
            _Rank(job, channel, store_fd).serve()
        except ConfigError as error:
            channel.send(Failed(error.message))
            return 2
    except LineClosed:
        return 1
    return 0


class _Rank:
    def __init__(self, job: Job, channel: Channel[AnyToRank], store_fd: int) -> None:
        """Meet the others, and load. Raises ConfigError."""
        self._config = config = job.config
        self._channel = channel
        pin(job.cores)
        set_batch_invariant(config.batch_invariant)
        self._device = choose_device(config.device, job.rank)
        shard = Shard(job.rank, job.num_ranks)
        channel.send(Here())
        store = make_store(store_fd, job.num_ranks)
        self._group: GroupRanks = make_group(
            store, shard, self._device, in_order=config.batch_invariant
        )
        self._group.meet()
        self._model: CausalLM = load_part(config, Path(job.path), self._device, self._group)
        spec = self._model.spec
        is_shared = self._device.type == "cpu"
        self._layout = kv_layout(config, spec if is_shared else shard.local(spec))
        self._leader_pid = job.leader_pid
        channel.send(Loaded())

    def serve(self) -> None:
        cache: KVCache | None = None
        with torch.inference_mode():
            while True:
                match self._channel.receive():
                    case Measure():
                        self._channel.send(Measured(self._available_bytes()))
                    case MakeCache(num_blocks=num_blocks, shared_fd=fd):
                        cache = self._cache(num_blocks, fd)
                        self._channel.send(Ready())
                    case Step() as step:
                        assert cache is not None
                        self._take_part(step, cache)
                    case _:
                        return

    def _available_bytes(self) -> int:
        return available_bytes(self._config, self._model, self._layout, self._device)

    def _cache(self, num_blocks: int, shared_fd: int | None) -> KVCache:
        if shared_fd is None:
            return KVCache(self._layout, num_blocks, self._device)
        fd = os.open(f"/proc/{self._leader_pid}/fd/{shared_fd}", os.O_RDWR | os.O_CLOEXEC)
        return KVCache(self._layout, num_blocks, self._device, fd)

    def _take_part(self, step: Step, cache: KVCache) -> None:
        flat = room_for(step, self._device)
        self._group.broadcast(flat)
        ours = own_heads(cache.tensor, self._group.shard, self._model.spec)
        self._model.forward(unflatten(step, flat), ours)


def _die_with(leader_pid: int) -> None:
    """Signals of a terminal or a service manager are rank 0's business: it drains, then says Stop.
    Its death is ours, even while we are stopped or wait in a collective."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != leader_pid:
        raise LineClosed("rank 0 has gone")
