"""Rank 0's side of the other ranks: starts them, leads them through loading, ends with them.

    start ─▶ all Here ─▶ meet ─▶ all Loaded ─▶ Measure ─▶ MakeCache ─▶ all Ready ─▶ steps ─▶ Stop

Until they are ready, a rank that fails is one clear line. Afterwards a rank that dies or that
falls out of step ends this process at once, visibly: the KV cache of the others is of no use
without it, and what ran here goes on elsewhere as after any instance's death. Ranks never outlive
rank 0: they die with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from common.config import ServeConfig
from common.errors import ConfigError
from common.model.shards import Shard
from common.parallel.channel import (
    Channel,
    Failed,
    FromRank,
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
    ToRank,
    make_line,
)
from common.parallel.group import GroupRanks, make_group, make_store

log = logging.getLogger(__name__)

START_S = 120.0  # for a rank's interpreter and imports
LOAD_S = 3600.0  # for a rank's weights
STOP_S = 5.0
EXIT_STATUS = 70  # of an instance that has lost a rank

AnyFromRank = Here | Loaded | Measured | Ready | Failed
T = TypeVar("T", bound=FromRank)


@dataclass(slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    channel: Channel[AnyFromRank]

    def how_it_ended(self) -> str:
        status = self.process.poll()
        if status is None:
            return "closed its line"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class RankProcesses:
    """The ranks from 1 on. Made and closed by the thread that outlives them, the main one."""

    def __init__(
        self,
        config: ServeConfig,
        path: Path,
        device: torch.device,
        cores: Sequence[Sequence[int]],
        program: str,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """cores:    of each rank, this one's first; as many as there are ranks
        program:  module that a rank runs; its arguments are two open files (`run_rank`)
        on_lost:  told once why the ranks are of no more use; default: end this process
        """
        self._num_ranks = len(cores)
        self._device = device
        self._in_order = config.batch_invariant
        self._on_lost = on_lost or _end_process
        self._lock = threading.Lock()
        self._is_over = False
        self._ranks: list[_Rank] = []
        # Never closed: the store opens its path once more when it goes, which may be at exit. Were
        # the number another file's by then, it would read and write there.
        store_fd = os.memfd_create("xpyd-ranks", 0)
        try:
            for number in range(1, self._num_ranks):
                self._ranks.append(_start(number, program, store_fd))
            for rank in self._ranks:
                place = (rank.number, self._num_ranks, os.getpid(), tuple(cores[rank.number]))
                rank.channel.send(Job(*place, str(path), config))
            self._expect(Here, START_S)
            store = make_store(store_fd, self._num_ranks)
            self.group = self._meet(store)
        except LineClosed:
            self.close()
            raise ConfigError("a tensor-parallel rank could not be started") from None
        except BaseException:
            self.close()
            raise

    def wait_loaded(self) -> None:
        """Raises ConfigError if a rank could not load its part."""
        self._expect(Loaded, LOAD_S)

    def measure(self, ours: Callable[[], int]) -> int:
        """The least of what any rank has for a KV cache, in bytes; `ours` measures here."""
        self._tell(Measure())
        mine = ours()
        return min([mine, *(told.available_bytes for told in self._expect(Measured, LOAD_S))])

    def make_caches(self, num_blocks: int, shared_fd: int | None) -> None:
        """The ranks are ready afterwards, and watched. shared_fd: file of our cache in host memory,
        which is all ranks' cache."""
        self._tell(MakeCache(num_blocks, shared_fd))
        self._expect(Ready, LOAD_S)
        for rank in self._ranks:
            threading.Thread(
                target=self._watch, args=(rank,), name=f"rank-{rank.number}", daemon=True
            ).start()
        pids = ", ".join(str(rank.process.pid) for rank in self._ranks)
        log.info("%d tensor-parallel ranks; beside this process: %s", self._num_ranks, pids)

    @property
    def pids(self) -> list[int]:
        """Of the ranks from 1 on."""
        return [rank.process.pid for rank in self._ranks]

    def step(self, header: Step) -> None:
        """Raises LineClosed."""
        self._tell(header)

    def lost(self, reason: str) -> None:
        """The ranks have fallen out of step: end with them. From any thread; the first counts."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        for rank in self._ranks:
            rank.process.kill()
        self._on_lost(reason)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._is_over = True
        for rank in self._ranks:
            with contextlib.suppress(LineClosed):
                rank.channel.send(Stop())
        deadline = time.monotonic() + STOP_S
        for rank in self._ranks:
            try:
                rank.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
            rank.channel.close()
        self._ranks = []

    # --- inside ------------------------------------------------------------------------------

    def _meet(self, store: object) -> GroupRanks:
        try:
            group = make_group(
                store,  # type: ignore[arg-type]
                Shard(0, self._num_ranks),
                self._device,
                in_order=self._in_order,
            )
            group.meet()
        except RuntimeError as error:
            raise ConfigError(f"the tensor-parallel ranks did not meet: {error}") from None
        return group

    def _tell(self, message: ToRank) -> None:
        for rank in self._ranks:
            rank.channel.send(message)

    def _expect(self, kind: type[T], timeout_s: float) -> list[T]:
        """One such message of each rank. Raises ConfigError, after which there are no ranks."""
        deadline = time.monotonic() + timeout_s
        found: list[T] = []
        for rank in self._ranks:
            try:
                message = rank.channel.receive(max(0.001, deadline - time.monotonic()))
            except LineClosed:
                rank.process.wait(STOP_S)
                why = f"tensor-parallel rank {rank.number} {rank.how_it_ended()}"
                self._give_up(why)
            except TimeoutError:
                self._give_up(f"tensor-parallel rank {rank.number} did not answer")
            if isinstance(message, Failed):
                self._give_up(message.message)
            assert isinstance(message, kind), f"{message} came out of order"
            found.append(message)
        return found

    def _give_up(self, why: str) -> None:
        self.close()
        raise ConfigError(why)

    def _watch(self, rank: _Rank) -> None:
        rank.process.wait()
        self.lost(
            f"tensor-parallel rank {rank.number} (pid {rank.process.pid}) {rank.how_it_ended()}"
        )


def _start(number: int, program: str, store_fd: int) -> _Rank:
    ours, theirs = make_line()
    with theirs:
        fds = (theirs.fileno(), store_fd)
        root = str(Path(__file__).parent.parent.parent)
        paths = filter(None, [root, os.environ.get("PYTHONPATH")])
        process = subprocess.Popen(
            [sys.executable, "-m", program, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=fds,
        )
    return _Rank(number, process, Channel(ours, AnyFromRank))  # type: ignore[arg-type]


def _end_process(reason: str) -> None:
    """Not an exception: a thread may be waiting in a collective for a rank that never comes."""
    log.critical("%s: this instance ends", reason)
    logging.shutdown()
    os._exit(EXIT_STATUS)
