"""One KV block in one file: no half of it is ever seen, nothing in it is believed unchecked.

    magic, 8 bytes · version u32 · header bytes u32 · checksum of the block u32 · zero u32
    size of the block u64 · block hash, 64 bytes, zero-padded · layout digest, 32 bytes
    checksum of all that u32 · zeros up to 4096
    the block

All numbers little-endian; checksums as in `checksum.py`. The format is our own rather than
safetensors because its header has a fixed size: a reader knows how large the file must be before it
reads a byte, parses no JSON that a stranger wrote, and gets the block page-aligned. Knows no leases
and no regions.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import CorruptBlock, TransferError
from kv_transfer.checksum import checksum

MAGIC = b"XPYDKV\n\0"
VERSION = 2
HEADER_BYTES = 4096
_FIELDS = struct.Struct("<8sIIIIQ64s32s")
_CHECKSUM = struct.Struct("<I")
TEMPORARY_PREFIX = ".tmp-"


class BlockMissing(TransferError):
    """No such block is stored."""


@dataclass(frozen=True, slots=True)
class BlockName:
    """What a file must hold."""

    block_hash: str  # hex
    layout: bytes  # 32-byte digest
    size_bytes: int

    def header(self, block_checksum: int) -> bytes:
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            block_checksum,
            0,
            self.size_bytes,
            self.block_hash.encode(),
            self.layout,
        )
        return (fields + _CHECKSUM.pack(checksum(fields))).ljust(HEADER_BYTES, b"\0")


class Room(Protocol):
    """Where files go. Raises OSError."""

    def create(self, path: Path, num_bytes: int) -> int:
        """A new file that will have this size, open for writing."""
        ...

    def rename(self, temporary: Path, path: Path) -> None: ...


def write(path: Path, name: BlockName, block: memoryview, room: Room) -> None:
    """Store the block under `path`, whole or not at all. Raises OSError."""
    header = name.header(checksum(block))
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    fd = room.create(temporary, HEADER_BYTES + name.size_bytes)
    try:
        try:
            _write_all(fd, memoryview(header))
            _write_all(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)
        room.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: Path, name: BlockName) -> bytearray:
    """The block, after everything about it has been checked. Raises TransferError kinds."""
    try:
        # NONBLOCK: opening a FIFO must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BlockMissing("a stored KV block is missing") from None
    except OSError as error:
        raise TransferError(f"a stored KV block cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptBlock("a stored KV block is not a regular file")
        if status.st_size != HEADER_BYTES + name.size_bytes:
            raise CorruptBlock("a stored KV block has the wrong size")
        header = _read_exactly(fd, HEADER_BYTES)
        block = _read_exactly(fd, name.size_bytes)
    except OSError as error:
        raise TransferError(f"a stored KV block cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    # The expected header holds everything but the data; with the data's checksum it holds that too.
    if bytes(header) != name.header(checksum(block)):
        raise CorruptBlock("a stored KV block is damaged or is not the one it is named")
    return block


def is_valid(path: Path, name: BlockName) -> bool:
    try:
        read(path, name)
    except TransferError:
        return False
    return True


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _read_exactly(fd: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = os.readv(fd, [view])
        if not count:
            raise CorruptBlock("a stored KV block ended early")
        view = view[count:]
    return data
