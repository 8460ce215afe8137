"""Across hosts: the consumer READs blocks through NIXL (UCX over RDMA, shared memory or TCP).

Both pools are registered once; descriptor lists, one descriptor per block, are prepared once per
peer; a fetch then only names indices. NIXL's progress thread stays off, because it spins: the
consumer polls its own reads with growing pauses, and the producer calls `poll` while it has
readers. A finished READ says nothing about leases; that is what the side channel's `Finish` is for.

A NIXL agent is not thread-safe as we configure it, so one lock is held around each call, never
around a pause. `deserialize_descs` is never used: it unpickles.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, LayoutMismatch, TransferError
from kv_transfer.machine import boot_id
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Gate, Peer, Stopped, Transport

log = logging.getLogger(__name__)

PACKAGES = ("nixl_cu13", "nixl_cu12", "nixl")
PAUSE_MIN_S = 0.00005
PAUSE_MAX_S = 0.002
READ_BYTES = 8 << 20  # of one chunk: a READ cannot be stopped, only waited for
DEPTH = 2  # chunks in flight


MemoryKind = Literal["DRAM", "VRAM"]


class NixlDescription(msgspec.Struct, frozen=True, array_like=True):
    agent: str
    metadata: bytes  # NIXL's own, for `add_remote_agent`
    address: Annotated[int, msgspec.Meta(ge=0)]  # of block 0, in the producer
    memory: MemoryKind
    device: Annotated[int, msgspec.Meta(ge=0)]
    machine: str = ""  # the kernel's word for where the producer runs


@dataclass(frozen=True, slots=True)
class _Read:
    handle: Any
    state: str  # when it was posted
    end: int  # blocks read once it and those before it are done


class NixlTransport(Transport):
    name = "nixl"
    polls = True

    def __init__(self, region: KVRegion, agent_name: str, backends: Sequence[str]) -> None:
        """`agent_name` must be unique and new at each start. Raises ConfigError."""
        api = _import_api()
        self.region = region
        # NIXL's name for where the pool lies, and its number there.
        self.memory: MemoryKind = "DRAM" if region.device is None else "VRAM"
        self.device = region.device or 0
        self.checksums = region.device is None  # the bytes may cross a network
        self.lock = threading.Lock()  # around every call into `agent`
        self.is_closed = False
        self._agent_name = agent_name
        self._generations: dict[str, int] = {}  # of each producer's metadata: how often loaded
        try:
            config = api.nixl_agent_config(enable_prog_thread=False, backends=list(backends))
            self.agent = api.nixl_agent(agent_name, config)
            memory = [(region.address, region.size_bytes, self.device, "")]
            self._registered = self.agent.register_memory(memory, self.memory)
            self.local = self.agent.prep_xfer_dlist(
                "", _descriptors(region, self.device), self.memory
            )
        except Exception as error:  # the bindings raise classes of their own, derived from this
            raise ConfigError(f"connector nixl cannot start: {error}") from None

    def describe(self) -> bytes:
        with self.lock:
            metadata = self.agent.get_agent_metadata()
        description = NixlDescription(
            self._agent_name,
            metadata,
            self.region.address,
            self.memory,
            self.device,
            boot_id(),
        )
        return msgspec.msgpack.encode(description)

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        try:
            theirs = msgspec.msgpack.decode(description, type=NixlDescription)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise TransferError("the producer's NIXL description is malformed") from None
        if theirs.agent == self._agent_name:
            raise LayoutMismatch("connector nixl does not read from its own process")
        pool = KVRegion(theirs.address, num_blocks, self.region.block_bytes)
        with self.lock, nixl_errors("connect"):
            loaded = self.agent.add_remote_agent(theirs.metadata)
            name = loaded.decode() if isinstance(loaded, bytes) else str(loaded)
            if name != theirs.agent:
                self.agent.remove_remote_agent(name)
                raise TransferError("the producer's NIXL metadata is another agent's")
            remote = self.agent.prep_xfer_dlist(
                name, _descriptors(pool, theirs.device), theirs.memory
            )
            generation = self._generations[name] = self._generations.get(name, 0) + 1
        is_here = theirs.machine == boot_id()  # then the bytes cross no network
        return NixlPeer(self, name, generation, remote, self.always_compares or not is_here)

    def disconnect(self, name: str, generation: int) -> None:
        """Break the connection, and with it the reads in flight, unless it has been made anew."""
        with self.lock:
            if self.is_closed or self._generations[name] != generation:
                return
            try:
                self.agent.remove_remote_agent(name)
            except Exception as error:
                log.warning("NIXL disconnect failed: %s", error)

    def poll(self) -> None:
        with self.lock:
            if not self.is_closed:
                self.agent.get_new_notifs()

    def close(self) -> None:
        with self.lock:
            if self.is_closed:
                return
            self.is_closed = True
            try:
                self.local.release()
                self.agent.deregister_memory(self._registered)
            except Exception as error:
                log.warning("NIXL close failed: %s", error)


class NixlPeer(Peer):
    writes_through_gate = False

    def __init__(
        self,
        transport: NixlTransport,
        name: str,
        generation: int,
        remote: Any,
        compares: bool,
    ) -> None:
        self.compares = compares
        self._transport = transport
        self._name = name
        self._generation = generation
        self._remote = remote  # prepared descriptors, one per block of the producer's pool
        self._is_closed = False
        self._chunk = max(1, READ_BYTES // transport.region.block_bytes)

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        """In chunks, some in flight at once. Returns or raises only when every READ has ended: NIXL
        cannot stop one, only finish it, or fail it when the connection is broken."""
        posted: deque[_Read] = deque()
        try:
            for start in range(0, len(remote), self._chunk):
                if gate.is_closed:
                    raise Stopped("the read was stopped")
                chunk = slice(start, start + self._chunk)
                posted.append(self._post(list(remote[chunk]), list(local[chunk]), start))
                if len(posted) == DEPTH or posted[0].state != "PROC":
                    self._finish(posted.popleft(), gate)
        finally:
            self._drain(posted, gate)

    def _post(self, remote: list[int], local: list[int], first: int) -> _Read:
        transport = self._transport
        with transport.lock, nixl_errors("read"):
            self._check_open()
            agent = transport.agent
            handle = agent.make_prepped_xfer("READ", transport.local, local, self._remote, remote)
            return _Read(handle, agent.transfer(handle), first + len(remote))

    def _drain(self, posted: deque[_Read], gate: Gate) -> None:
        """See all of them end, whatever the first of them raises."""
        try:
            while posted:
                self._finish(posted.popleft(), gate)
        finally:
            if posted:
                self._drain(posted, gate)

    def _finish(self, read: _Read, gate: Gate) -> None:
        transport, state = self._transport, read.state
        pause_s = PAUSE_MIN_S
        while state == "PROC":
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, PAUSE_MAX_S)
            with transport.lock, nixl_errors("read"):
                self._check_open()
                state = transport.agent.check_xfer_state(read.handle)
        with transport.lock, nixl_errors("read"):
            self._check_open()
            read.handle.release()
        if state != "DONE":
            raise TransferError("a NIXL read failed")
        gate.landed(read.end)

    def _check_open(self) -> None:
        if self._transport.is_closed:
            raise TransferError("the connector is closing")

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._transport.disconnect(self._name, self._generation)


@contextmanager
def nixl_errors(what: str) -> Iterator[None]:
    """The bindings' errors share no base class of their own."""
    try:
        yield
    except TransferError:
        raise
    except Exception as error:
        raise TransferError(f"NIXL {what}: {type(error).__name__}") from None


def _descriptors(region: KVRegion, device: int) -> NDArray[np.uint64]:
    """[num_blocks, 3]: address, length, device of each block."""
    descriptors = np.empty((region.num_blocks, 3), np.uint64)
    starts = np.arange(region.num_blocks, dtype=np.uint64) * np.uint64(region.block_bytes)
    descriptors[:, 0] = starts + np.uint64(region.address)
    descriptors[:, 1] = region.block_bytes
    descriptors[:, 2] = device
    return descriptors


def _import_api() -> ModuleType:
    for package in PACKAGES:
        try:
            return importlib.import_module(f"{package}._api")
        except ImportError:
            continue
    raise ConfigError(
        "connector nixl needs the package nixl (or nixl-cu13, nixl-cu12): pip install 'xpyd[nixl]'"
    )
