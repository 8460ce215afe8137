"""Blocks through a directory that both ends see: one file per block, named by the block's hash.

    <directory>/<layout digest>/<first two digits of the hash>/<hash>

The hash covers model, salt and all tokens up to the block's end; the layout digest covers the KV
fingerprint and the block's size. So a file is right for whoever asks for its name, whenever it was
written: it survives restarts, and a block that is already there is not written again.

Writing happens before the blocks are offered; a disk that is full or read-only fails that offer,
and prefill goes on. Beside a connector that reads at once (`multi`) it happens afterwards. Whatever
is wrong with a file fails the read, removes the file, and the caller computes the block.

All instances share what is stored: before a prompt is computed, its leading blocks that are there
can be loaded (`num_stored`, `load`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.errors import ConfigError, CorruptBlock, TransferError
from kv_transfer.region import KVRegion
from kv_transfer.transport import block_file
from kv_transfer.transport.base import Gate, Peer, Stopped, Transport
from kv_transfer.transport.block_file import HEADER_BYTES, TEMPORARY_PREFIX, BlockName
from kv_transfer.transport.quota import Quota, Unlimited

log = logging.getLogger(__name__)

_HASH = re.compile("[0-9a-f]{16,64}")
_OURS = re.compile(
    rf"[0-9a-f]{{64}}/[0-9a-f]{{2}}/({re.escape(TEMPORARY_PREFIX)})?[0-9a-f]{{16,64}}"
)
BEHIND_S = 5.0  # how long a block may be missing that is written after it was offered
LOOK_S = 0.005
STALE_S = 60.0  # a temporary file this old has lost its writer
MAX_KNOWN = 65536
_Seen = tuple[int, int, int]  # inode, size, time of last use


@dataclass(slots=True)
class StorageCounters:
    """Plain numbers that only grow."""

    hits: int = 0  # blocks read
    misses: int = 0  # blocks asked for that were not there, or not as they should be
    damaged: int = 0  # of those, the latter: they have been removed
    read_bytes: int = 0
    written_bytes: int = 0


class BlockFiles:
    """Where the blocks of one layout lie. Used by several threads."""

    def __init__(
        self, root: Path, kv_fingerprint: str, block_bytes: int, max_bytes: int | None
    ) -> None:
        facts = f"{kv_fingerprint}\n{block_bytes}\n{block_file.VERSION}"
        self._layout = hashlib.sha256(facts.encode()).digest()
        self._block_bytes = block_bytes
        self._root = root
        self._directory = root / self._layout.hex()
        self._known: OrderedDict[str, _Seen] = OrderedDict()  # files that were right when we looked
        self._lock = threading.Lock()  # around `_known`
        self._quota: Quota | Unlimited = Unlimited()
        if max_bytes is not None:
            if max_bytes < HEADER_BYTES + block_bytes:
                raise ConfigError("shared_storage_max_bytes is less than one KV block takes")
            self._quota = Quota(root, max_bytes, self._all_files)
        self.counts = StorageCounters()

    @property
    def num_evicted(self) -> int:
        return self._quota.num_evicted

    def place(self, block_hash: str) -> tuple[Path, BlockName]:
        if not _HASH.fullmatch(block_hash):
            raise TransferError("a block hash is malformed")
        path = self._directory / block_hash[:2] / block_hash
        return path, BlockName(block_hash, self._layout, self._block_bytes)

    def has(self, block_hash: str) -> bool:
        """Is there a file that may hold it? Only `load` knows."""
        path, _ = self.place(block_hash)
        try:
            return path.stat().st_size == HEADER_BYTES + self._block_bytes
        except OSError:
            return False

    def store(self, block_hash: str, block: memoryview) -> None:
        """Write the block unless it is there. Raises OSError."""
        path, name = self.place(block_hash)
        if self._is_known(block_hash, path) or block_file.is_valid(path, name):
            self._touch(block_hash, path)
            return
        for directory in (self._directory, path.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
        block_file.write(path, name, block, self._quota)
        self.counts.written_bytes += self._block_bytes
        self._touch(block_hash, path)

    def load(self, block_hash: str) -> bytearray:
        """Raises TransferError kinds. A file that is not right is removed."""
        path, name = self.place(block_hash)
        try:
            block = block_file.read(path, name)
        except TransferError as error:
            self.counts.misses += 1
            if isinstance(error, CorruptBlock):
                self.counts.damaged += 1
                self._remove(block_hash, path)
            raise
        self.counts.hits += 1
        self.counts.read_bytes += self._block_bytes
        self._touch(block_hash, path)
        return block

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
            self._quota.recount()
        except OSError as error:
            raise ConfigError(f"shared_storage_path cannot be used: {error.strerror}") from None

    def _sweep(self) -> None:
        now = time.time()
        for path in self._directory.glob(f"*/{block_file.TEMPORARY_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.lstat().st_mtime > STALE_S:
                    path.unlink()

    def _all_files(self) -> Iterator[Path]:
        """Of every layout: the limit is the root's. Only what we have written ourselves."""
        for path in self._root.glob("*/*/*"):
            if _OURS.fullmatch(path.relative_to(self._root).as_posix()):
                yield path

    def _remove(self, block_hash: str, path: Path) -> None:
        with self._lock:
            self._known.pop(block_hash, None)
        try:
            size = path.lstat().st_size
            path.unlink()
            self._quota.removed(size)
        except OSError as error:
            log.warning("a damaged KV block was not removed: %s", error.strerror)

    def _touch(self, block_hash: str, path: Path) -> None:
        """The file is right and has been used: it is evicted later, and not read again to be
        compared."""
        with contextlib.suppress(OSError):  # evicted meanwhile, or on a read-only file system
            now = time.time_ns()  # finer than the kernel's own: no later write gets the same time
            os.utime(path, ns=(now, now))
            with self._lock:
                self._known[block_hash] = _seen(path)
                self._known.move_to_end(block_hash)
                while len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)

    def _is_known(self, block_hash: str, path: Path) -> bool:
        try:
            return self._known.get(block_hash) == _seen(path)
        except OSError:
            return False


def _seen(path: Path) -> _Seen:
    status = path.lstat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class SharedStorageTransport(Transport):
    name = "shared_storage"
    publishes = True
    uses_hashes = True

    def __init__(
        self,
        region: KVRegion,
        directory: str,
        kv_fingerprint: str,
        max_bytes: int | None = None,
    ) -> None:
        """`max_bytes`: of all files there, whoever wrote them; None: no limit. Raises ConfigError
        if the directory cannot be used, or others may write there."""
        self._region = region
        self._files = BlockFiles(Path(directory), kv_fingerprint, region.block_bytes, max_bytes)
        self._files.prepare()

    def describe(self) -> bytes:
        """Nothing: each end has its own path to the directory, and a path is none of a peer's
        business. Two directories that are not the same show as missing blocks."""
        return b""

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        return StoragePeer(self._files, self._region, BEHIND_S if self.is_behind else 0.0)

    def publish(self, block_ids: Sequence[int], hashes: Sequence[str]) -> None:
        if len(hashes) != len(block_ids):
            raise TransferError("connector shared_storage needs the hash of every block")
        blocks = self._region.blocks()
        try:
            for block_id, block_hash in zip(block_ids, hashes, strict=True):
                self._files.store(block_hash, blocks[block_id].data)
        except OSError as error:
            raise TransferError(f"KV blocks cannot be stored: {error.strerror}") from None

    def num_stored(self, hashes: Sequence[str]) -> int:
        """How many of the leading blocks seem to be there. Blocks on the disk."""
        for num_found, block_hash in enumerate(hashes):
            if not self._files.has(block_hash):
                return num_found
        return len(hashes)

    def load(self, block_ids: Sequence[int], hashes: Sequence[str]) -> int:
        """Fill these blocks with what is stored; how many of the leading ones are right now.
        Blocks on the disk."""
        blocks = self._region.blocks()
        for num_loaded, (block_id, block_hash) in enumerate(zip(block_ids, hashes, strict=True)):
            try:
                blocks[block_id] = np.frombuffer(self._files.load(block_hash), np.uint8)
            except TransferError:
                return num_loaded
        return len(block_ids)

    def counters(self) -> dict[str, int]:
        counts = {f"kv_storage_{name}": value for name, value in asdict(self._files.counts).items()}
        return counts | {"kv_storage_evictions": self._files.num_evicted}

    def close(self) -> None:
        pass


class StoragePeer(Peer):
    def __init__(self, files: BlockFiles, region: KVRegion, patience_s: float) -> None:
        """`patience_s`: for files that are being written while they are read."""
        self._files = files
        self._target = region.blocks()
        self._patience_s = patience_s

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        if len(hashes) != len(local):
            raise TransferError("the producer named no block hashes")
        until = time.monotonic() + self._patience_s
        for block_id, block_hash in zip(local, hashes, strict=True):
            self._await(block_hash, until, gate)
            if gate.is_closed:
                raise Stopped("the read was stopped")
            block = np.frombuffer(self._files.load(block_hash), np.uint8)
            with gate.write():
                self._target[block_id] = block

    def _await(self, block_hash: str, until: float, gate: Gate) -> None:
        while not (self._files.has(block_hash) or gate.is_closed or time.monotonic() >= until):
            time.sleep(LOOK_S)

    def close(self) -> None:
        pass
