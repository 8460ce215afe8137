"""A limit on what the files under one directory take, kept by all processes that write there.

    <root>/.usage     bytes taken, as decimal text; whoever changes it holds its lock

A file gets its full size when it is made, under the lock, so the limit holds at every moment,
whoever writes. When there is no room, the files that were least recently used go (by modification
time: readers renew it) until a tenth of the limit is free. The count may only err upwards (a writer
was killed, a file deleted by hand): each eviction counts anew what is there. Knows no blocks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kv_transfer.transport.block_file import TEMPORARY_PREFIX

USAGE = ".usage"
LOW_WATER = 0.9
LOCK_S = 2.0  # it is held for microseconds, or for one eviction, or by a process that was stopped
ABANDONED_S = 300  # an unfinished file that nobody has written to for so long has no writer
_PAUSE_S = 0.005
_NUM_DIGITS = 20


class Unlimited:
    """The same where nobody counts."""

    num_evicted = 0

    def create(self, path: Path, num_bytes: int) -> int:
        return _create(path)

    def rename(self, temporary: Path, path: Path) -> None:
        temporary.rename(path)

    def removed(self, num_bytes: int) -> None:
        pass

    def recount(self) -> None:
        pass


class Quota:
    def __init__(self, root: Path, max_bytes: int, files: Callable[[], Iterator[Path]]) -> None:
        """`files()` lists every file that counts, those being written included."""
        self._path = root / USAGE
        self._max_bytes = max_bytes
        self._files = files
        self._thread_lock = threading.Lock()  # flock does not keep two of our own threads apart
        self.num_evicted = 0

    def create(self, path: Path, num_bytes: int) -> int:
        """A new file of this size, open for writing. Raises OSError, of EDQUOT if it is larger than
        all that may be taken."""
        with self._locked() as usage:
            used = _read(usage)
            if used + num_bytes > self._max_bytes:
                used = self._evict(int(self._max_bytes * LOW_WATER) - num_bytes)
                _write(usage, used)
            if used + num_bytes > self._max_bytes:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            fd = _create(path)
            try:
                os.ftruncate(fd, num_bytes)
                _write(usage, used + num_bytes)
            except OSError:
                os.close(fd)
                path.unlink()
                raise
            return fd

    def rename(self, temporary: Path, path: Path) -> None:
        """Give a file its name, in place of another, if there is one. Under the lock: whoever
        counts meets the file once, under one of its names. Raises OSError."""
        with self._locked() as usage:
            replaced = path.lstat().st_size if path.exists() else 0
            temporary.rename(path)
            if replaced:
                _write(usage, max(0, _read(usage) - replaced))

    def removed(self, num_bytes: int) -> None:
        """A file of this size has been deleted. Raises OSError."""
        with self._locked() as usage:
            _write(usage, max(0, _read(usage) - num_bytes))

    def recount(self) -> None:
        """At the start: others may have come and gone, and the limit may be another. Raises
        OSError."""
        with self._locked() as usage:
            _write(usage, self._evict(self._max_bytes))

    def _evict(self, target: int) -> int:
        """Remove files, oldest first, until they take at most `target` bytes; what is left.

        A file that somebody may still be writing counts and stays.
        """
        found = []
        youngest_ns = time.time_ns() - ABANDONED_S * 10**9
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.lstat()
                found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for modified_ns, size, path in sorted(found):
            if used <= max(0, target):
                break
            if path.name.startswith(TEMPORARY_PREFIX) and modified_ns > youngest_ns:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                used -= size
                self.num_evicted += 1
        return used

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._thread_lock:
            fd = os.open(self._path, flags, 0o600)
            try:
                _lock(fd)
                yield fd
            finally:
                os.close(fd)


def _create(path: Path) -> int:
    """A new file of ours, open for writing. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _lock(fd: int) -> None:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_S)


def _read(fd: int) -> int:
    text = os.pread(fd, _NUM_DIGITS, 0).strip()
    return int(text) if text.isdigit() else 0


def _write(fd: int, used: int) -> None:
    os.pwrite(fd, str(used).rjust(_NUM_DIGITS).encode(), 0)
