"""Same host: the consumer maps the producer's KV pool and copies blocks out of it.

The pool is a memfd. The producer says its process id and file descriptor, the consumer opens
`/proc/<pid>/fd/<fd>` read-only, which the kernel allows to the same user in the same PID namespace.
Nothing has a name in a file system, so nothing is left behind after a kill, and a producer's death
does not hurt a copy in progress: the mapping keeps the memory.

The pool is sealed against shrinking, on one side, and the seal is checked, on the other: reading a
mapped page that has been cut off would kill the consumer.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Sequence

import msgspec
import numpy as np

from common.errors import ConfigError, LayoutMismatch, PeerLost, TransferError
from kv_transfer.machine import boot_id
from kv_transfer.region import CHUNK_BYTES, KVRegion, runs
from kv_transfer.transport.base import Gate, Peer, Transport


class ShmDescription(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where to open the pool, and how to tell that it is the one that was meant."""

    host: str  # boot id and PID namespace
    pid: int
    fd: int
    device: int
    inode: int
    size_bytes: int


class ShmTransport(Transport):
    name = "shm"

    def __init__(self, region: KVRegion) -> None:
        self._region = region

    def describe(self) -> bytes:
        fd = self._region.fd
        if fd is None:
            raise ConfigError("connector shm needs a KV pool in a memfd")
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except OSError:
            raise ConfigError(
                "connector shm needs a KV pool in a memfd made with MFD_ALLOW_SEALING"
            ) from None
        status = os.fstat(fd)
        if status.st_size < self._region.size_bytes:
            raise ConfigError("the memfd is smaller than the KV pool")
        description = ShmDescription(
            _host(), os.getpid(), fd, status.st_dev, status.st_ino, status.st_size
        )
        return msgspec.msgpack.encode(description)

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        try:
            theirs = msgspec.msgpack.decode(description, type=ShmDescription)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise TransferError("the producer's description of its memory is malformed") from None
        if theirs.host != _host():
            raise LayoutMismatch(
                "connector shm needs both ends on one host, in one PID namespace: use nixl"
            )
        if theirs.size_bytes < num_blocks * self._region.block_bytes:
            raise LayoutMismatch("the producer's memory is smaller than its pool")
        return ShmPeer(_map(theirs), num_blocks, self._region)

    def close(self) -> None:
        pass


class ShmPeer(Peer):
    only_copies = True

    def __init__(self, memory: mmap.mmap, num_blocks: int, region: KVRegion) -> None:
        size = num_blocks * region.block_bytes
        # The array keeps the mapping; the mapping goes with its last array.
        self._source = np.frombuffer(memory, np.uint8, size).reshape(num_blocks, region.block_bytes)
        self._target = region.blocks()
        self._max_blocks = max(1, CHUNK_BYTES // region.block_bytes)

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        source_blocks = self._source
        for source, target, count in runs(remote, local, self._max_blocks):
            with gate.write():
                self._target[target : target + count] = source_blocks[source : source + count]

    def close(self) -> None:
        self._source = np.empty((0, 0), np.uint8)


def _host() -> str:
    return f"{boot_id()}/{os.stat('/proc/self/ns/pid').st_ino}"


def _map(theirs: ShmDescription) -> mmap.mmap:
    """Open and map the pool, after making sure that it is the sealed memfd that was described.

    The process id may meanwhile be another process's: device, inode and size tell.
    """
    path = f"/proc/{theirs.pid:d}/fd/{theirs.fd:d}"
    try:
        if not os.readlink(path).startswith("/memfd:"):
            raise TransferError("the producer's memory is not a memfd")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise PeerLost("the producer's process has gone") from None
    except PermissionError:
        raise LayoutMismatch("connector shm needs both ends to run as one user") from None
    except OSError as error:
        raise TransferError(f"the producer's memory cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        found = (status.st_dev, status.st_ino, status.st_size)
        if not stat.S_ISREG(status.st_mode) or found != (
            theirs.device,
            theirs.inode,
            theirs.size_bytes,
        ):
            raise PeerLost("the producer's process has gone, another has its number")
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise TransferError("the producer's memory is not sealed against shrinking")
        return mmap.mmap(fd, theirs.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise TransferError(f"the producer's memory cannot be mapped: {error.strerror}") from None
    finally:
        os.close(fd)
