"""Blocks through a directory that both ends see: one file per block, named by the block's hash.

    <directory>/<layout digest>/<first two digits of the hash>/<hash>

The hash covers model, salt and all tokens up to the block's end; the layout digest covers the KV
fingerprint and the block's size. So a file is right for whoever asks for its name, whenever it was
written: it survives restarts, and a block that is already there is not written again.

Writing happens before the blocks are offered; a disk that is full or read-only fails that offer,
and prefill goes on. Whatever is wrong with a file fails the read, and the caller computes the
block.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import ConfigError, TransferError
from kv_transfer.region import KVRegion
from kv_transfer.transport import block_file
from kv_transfer.transport.base import Gate, Peer, Stopped, Transport
from kv_transfer.transport.block_file import BlockName

_HASH = re.compile("[0-9a-f]{16,64}")
STALE_S = 60.0  # a temporary file this old has lost its writer


class BlockFiles:
    """Where the blocks of one layout lie."""

    def __init__(self, root: Path, kv_fingerprint: str, block_bytes: int) -> None:
        facts = f"{kv_fingerprint}\n{block_bytes}"
        self._layout = hashlib.sha256(facts.encode()).digest()
        self._block_bytes = block_bytes
        self._root = root
        self._directory = root / self._layout.hex()

    def place(self, block_hash: str) -> tuple[Path, BlockName]:
        if not _HASH.fullmatch(block_hash):
            raise TransferError("a block hash is malformed")
        path = self._directory / block_hash[:2] / block_hash
        return path, BlockName(block_hash, self._layout, self._block_bytes)

    def store(self, block_hash: str, block: memoryview) -> None:
        """Write the block unless it is there. Raises OSError."""
        path, name = self.place(block_hash)
        if not block_file.is_valid(path, name):
            for directory in (self._directory, path.parent):
                directory.mkdir(mode=0o700, exist_ok=True)
            block_file.write(path, name, block)

    def load(self, block_hash: str) -> bytearray:
        """Raises TransferError kinds."""
        return block_file.read(*self.place(block_hash))

    def prepare(self) -> None:
        """Make the root ours alone, and remove what a killed writer left. Raises ConfigError."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._root.stat()
            if not stat.S_ISDIR(status.st_mode):
                raise ConfigError("shared_storage_path is not a directory")
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ConfigError("shared_storage_path must belong to us, writable by nobody else")
            self._sweep()
        except OSError as error:
            raise ConfigError(f"shared_storage_path cannot be used: {error.strerror}") from None

    def _sweep(self) -> None:
        now = time.time()
        for path in self._directory.glob(f"*/{block_file.TEMPORARY_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.lstat().st_mtime > STALE_S:
                    path.unlink()


class SharedStorageTransport(Transport):
    name = "shared_storage"
    publishes = True
    uses_hashes = True

    def __init__(self, region: KVRegion, directory: str, kv_fingerprint: str) -> None:
        """Raises ConfigError if the directory cannot be used, or others may write there."""
        self._region = region
        self._files = BlockFiles(Path(directory), kv_fingerprint, region.block_bytes)
        self._files.prepare()

    def describe(self) -> bytes:
        """Nothing: each end has its own path to the directory, and a path is none of a peer's
        business. Two directories that are not the same show as missing blocks."""
        return b""

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        return StoragePeer(self._files, self._region)

    def publish(self, block_ids: Sequence[int], hashes: Sequence[str]) -> None:
        if len(hashes) != len(block_ids):
            raise TransferError("connector shared_storage needs the hash of every block")
        blocks = self._region.blocks()
        try:
            for block_id, block_hash in zip(block_ids, hashes, strict=True):
                self._files.store(block_hash, blocks[block_id].data)
        except OSError as error:
            raise TransferError(f"KV blocks cannot be stored: {error.strerror}") from None

    def close(self) -> None:
        pass


class StoragePeer(Peer):
    def __init__(self, files: BlockFiles, region: KVRegion) -> None:
        self._files = files
        self._target = region.blocks()

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        if len(hashes) != len(local):
            raise TransferError("the producer named no block hashes")
        for block_id, block_hash in zip(local, hashes, strict=True):
            if gate.is_closed:
                raise Stopped("the read was stopped")
            block = np.frombuffer(self._files.load(block_hash), np.uint8)
            with gate.write():
                self._target[block_id] = block

    def close(self) -> None:
        pass
