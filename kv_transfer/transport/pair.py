"""The two ends of a pair, each with a thread of its own that alone touches the group.

    consumer                                   producer
    Receiver.read ─ask(request, blocks)──────▶ serve ─▶ Sender.send
             ◀── header: sequence, num_blocks ──────── │
             ◀── blocks, chunk by chunk ────────────── │

A pair is formed by its first request and ends with whatever fails first; the next read makes
another, under a new name: it is for others to find out that a producer has gone. A sender that has
nothing to do leaves after IDLE_S; a receiver does not use a pair again that has been idle for long.
Knows no leases: who may read what has been decided before `Sender.send`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from common.errors import TransferError
from kv_transfer.region import CHUNK_BYTES
from kv_transfer.transport.base import Gate, Stopped
from kv_transfer.transport.pair_group import (
    CONSUMER,
    PRODUCER,
    Group,
    join_store,
    make_group,
    serve_store,
)
from kv_transfer.transport.pair_memory import PairMemory

log = logging.getLogger(__name__)

IDLE_S = 60.0  # a sender without requests leaves
FRESH_S = 30.0  # a receiver idle for longer makes a new pair: the sender may be about to leave
HEADER_LEN = 2  # int64: sequence number, blocks that follow (0: none of those asked for)


class PairRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a consumer asks its producer for, beside the blocks."""

    pair: str  # secret name of the group, new for each
    consumer: str  # whose earlier pair this one replaces
    host: str  # of the store where the two meet
    port: int
    sequence: int  # 1 for the first request of a pair


@dataclass(slots=True)
class _Job:
    remote: Sequence[int]
    local: Sequence[int]
    first: int  # number of these blocks within what the gate's fetch reads
    gate: Gate
    done: threading.Event = field(default_factory=threading.Event)
    error: TransferError | None = None


class Receiver:
    """A consumer's end. One job at a time, in order; a job whose gate has closed is still received
    to its end, into staging memory, so that the next one finds its bytes."""

    def __init__(self, memory: PairMemory, host: str, consumer: str, block_bytes: int) -> None:
        self._memory = memory
        self._host = host
        self._consumer = consumer
        self._chunk = max(1, CHUNK_BYTES // block_bytes)
        self._name = secrets.token_hex(16)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # a job is either in the queue before the end, or refused
        self._used_at = time.monotonic()
        self._sequence = 0
        self._ended = False
        threading.Thread(target=self._run, name="kv-receive", daemon=True).start()

    @property
    def is_fresh(self) -> bool:
        return not self._ended and time.monotonic() - self._used_at < FRESH_S

    def put(self, remote: Sequence[int], local: Sequence[int], first: int, gate: Gate) -> _Job:
        """Read these blocks when it is their turn. Raises TransferError if the pair has ended."""
        self._used_at = time.monotonic()
        job = _Job(remote, local, first, gate)
        with self._lock:
            if not self._ended:
                self._jobs.put(job)
                return job
        raise TransferError("the process group has ended")

    def close(self) -> None:
        """Ends the thread after the job it is at. Does not wait for it."""
        self._jobs.put(None)

    def _run(self) -> None:
        group: Group | None = None
        error: Exception | None = None
        job: _Job | None = None
        try:
            store, port = serve_store(self._host)  # lives as long as the group
            staging = [self._memory.staging(self._chunk) for _ in range(2)]
            while (job := self._jobs.get()) is not None:
                if job.gate.is_closed:
                    job.error = Stopped("the read was stopped")
                else:
                    self._ask(job, port)
                    if group is None:
                        device = self._memory.device
                        group = make_group(store, self._name, CONSUMER, self._host, device)
                    self._receive(group, job, staging)
                job.done.set()
                self._used_at = time.monotonic()
        except Exception as failed:  # the top of this thread: torch raises kinds of RuntimeError
            log.info("process group %.8s ended: %s", self._name, _first_line(failed))
            error = failed
        finally:
            self._end(job, error)
            _abort(group)

    def _ask(self, job: _Job, port: int) -> None:
        self._sequence += 1
        request = PairRequest(self._name, self._consumer, self._host, port, self._sequence)
        job.gate.ask(msgspec.msgpack.encode(request), job.remote)

    def _receive(self, group: Group, job: _Job, staging: list[Tensor]) -> None:
        header = torch.zeros(HEADER_LEN, dtype=torch.int64, device=self._memory.device)
        group.wait(group.receive(header))
        sequence, num_blocks = header.tolist()
        if sequence != self._sequence or num_blocks not in (0, len(job.local)):
            raise RuntimeError("the producer's answer is not to what was asked")
        if not num_blocks:
            job.error = TransferError("the producer does not send these blocks")
            return
        starts = range(0, num_blocks, self._chunk)
        works = [group.receive(self._part(staging[0], job, 0))]
        for i, start in enumerate(starts):
            group.wait(works.pop())
            if start + self._chunk < num_blocks:
                part = self._part(staging[(i + 1) % 2], job, start + self._chunk)
                works.append(group.receive(part))
            self._keep(staging[i % 2], job, start)

    def _part(self, staging: Tensor, job: _Job, start: int) -> Tensor:
        return staging[: min(self._chunk, len(job.local) - start)]

    def _keep(self, staging: Tensor, job: _Job, start: int) -> None:
        local = job.local[start : start + self._chunk]
        try:
            with job.gate.write():
                self._memory.scatter(staging, local)
            job.gate.landed(job.first + start + len(local))
        except Stopped as stopped:
            job.error = stopped

    def _end(self, job: _Job | None, error: Exception | None) -> None:
        with self._lock:
            self._ended = True
        if job is not None:
            job.error = (
                error
                if isinstance(error, TransferError)
                else TransferError(f"the process group failed: {_first_line(error)}")
            )
            job.done.set()
        with contextlib.suppress(queue.Empty):
            while True:
                left = self._jobs.get_nowait()
                if left is not None:
                    left.error = TransferError("the process group has ended")
                    left.done.set()


@dataclass(frozen=True, slots=True)
class _Sending:
    sequence: int
    block_ids: tuple[int, ...]  # empty: none of those asked for


class Sender:
    """A producer's end. `on_end(name)` is called in its thread when that ends."""

    def __init__(
        self,
        memory: PairMemory,
        host: str,
        request: PairRequest,
        block_bytes: int,
        on_end: Callable[[str], None],
    ) -> None:
        """`host`: our own address, for the consumer's end to connect to."""
        self.name = request.pair
        self.consumer = request.consumer
        self._memory = memory
        self._host = host
        self._meeting = (request.host, request.port)
        self._chunk = max(1, CHUNK_BYTES // block_bytes)
        self._on_end = on_end
        self._sequence = 0
        self._queue: queue.SimpleQueue[_Sending | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="kv-send", daemon=True).start()

    def send(self, sequence: int, block_ids: Sequence[int]) -> None:
        """Answer a request; returns at once."""
        self._queue.put(_Sending(sequence, tuple(block_ids)))

    def close(self) -> None:
        """Ends the thread after what it is sending. Does not wait for it."""
        self._queue.put(None)

    def _run(self) -> None:
        group: Group | None = None
        try:
            store = join_store(*self._meeting)  # lives as long as the group
            group = make_group(store, self.name, PRODUCER, self._host, self._memory.device)
            staging = [self._memory.staging(self._chunk) for _ in range(2)]
            while (sending := self._queue.get(timeout=IDLE_S)) is not None:
                self._send(group, sending, staging)
        except queue.Empty:
            pass
        except Exception as failed:  # the top of this thread
            log.info("process group %.8s ended: %s", self.name, _first_line(failed))
        finally:
            self._on_end(self.name)
            _abort(group)

    def _send(self, group: Group, sending: _Sending, staging: list[Tensor]) -> None:
        self._sequence += 1
        if sending.sequence != self._sequence:
            raise RuntimeError("a request was lost")
        blocks = sending.block_ids
        header = torch.tensor([self._sequence, len(blocks)], device=self._memory.device)
        works = [group.send(header)]
        for i, start in enumerate(range(0, len(blocks), self._chunk)):
            part = blocks[start : start + self._chunk]
            self._memory.gather(part, staging[i % 2])  # while the chunk before is on its way
            group.wait(works.pop())
            works.append(group.send(staging[i % 2][: len(part)]))
        group.wait(works.pop())


def _abort(group: Group | None) -> None:
    if group is not None:
        with contextlib.suppress(RuntimeError):
            group.abort()


def _first_line(error: Exception | None) -> str:
    return str(error).partition("\n")[0][:200]
