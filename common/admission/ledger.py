"""The books of several processes at one port, so that a limit holds for all of them together: who
waits, and what each key has left. One file, mapped into each of them.

    | waiting, per process: int64 … | buckets: (digest, level, at, full_at) … |

A look at it takes microseconds and happens under the file's lock, which the kernel takes from a
process that dies. What the dead had waiting is cleared by whoever starts it again. Times are the
machine's monotonic clock, which its processes share. Knows no HTTP and no limits: who asks, says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from common.admission.rate_limit import MINUTE_S, Bucket, Change, Unit
from common.errors import Overloaded, Unavailable

SLOTS = 8192  # buckets that are not full; a full one is as none
PROBES = 64
LOCK_S = 0.1  # then whoever holds it must have been stopped in the middle
PAUSE_S = 0.0002
_COUNT = struct.Struct("<q")
_SLOT = struct.Struct("<16sddd")
_FREE = bytes(16)


class Ledger:
    """`number` of `count` processes. Both a `Tally` and `Buckets`."""

    def __init__(self, path: Path, number: int, count: int) -> None:
        """`path`: in a directory that only their user may enter."""
        size = _COUNT.size * count + _SLOT.size * SLOTS
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        os.ftruncate(self._fd, size)
        self._map = mmap.mmap(self._fd, size)
        self._number, self._count = number, count
        self.clear(number)

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    def clear(self, number: int) -> None:
        """Nobody waits there: it begins, or has died."""
        self._set(number, 0)

    # --- who waits -------------------------------------------------------------------------------

    def add(self, num: int, most: int) -> int | None:
        with self._locked():
            counts = [self._get(number) for number in range(self._count)]
            total = sum(counts)
            if total and total + num > most:
                return total
            self._set(self._number, counts[self._number] + num)
            return None

    def less(self, num: int) -> None:
        self._set(self._number, self._get(self._number) - num)  # nobody else writes there

    # --- what is left of rates -------------------------------------------------------------------

    def change(self, tenant: str, unit: Unit, limit: int, now: float, by: Change) -> float:
        digest = _digest(tenant, unit)
        with self._locked():
            offset, bucket = self._find(digest, now)
            bucket = bucket or Bucket(float(limit), now)
            bucket.fill(limit, now)
            found = by(bucket)
            full_at = bucket.at + (limit - bucket.level) * MINUTE_S / limit
            _SLOT.pack_into(self._map, offset, digest, bucket.level, bucket.at, full_at)
            return found

    def _find(self, digest: bytes, now: float) -> tuple[int, Bucket | None]:
        """Its slot, or one that it may have: never used, or of a bucket that is full again."""
        first, spare = int.from_bytes(digest[:4], "little"), None
        for step in range(PROBES):
            offset = _COUNT.size * self._count + _SLOT.size * ((first + step) % SLOTS)
            owner, level, at, full_at = _SLOT.unpack_from(self._map, offset)
            if owner == digest:
                return offset, Bucket(level, at)
            if spare is None and (owner == _FREE or full_at <= now):
                spare = offset
            if owner == _FREE:
                break
        if spare is None:
            raise Overloaded("too many keys have used up their rates; try again later")
        return spare, None

    # --- inside ----------------------------------------------------------------------------------

    def _get(self, number: int) -> int:
        found: int = _COUNT.unpack_from(self._map, _COUNT.size * number)[0]
        return found

    def _set(self, number: int, value: int) -> None:
        _COUNT.pack_into(self._map, _COUNT.size * number, value)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = 0.0
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                deadline = deadline or now + LOCK_S
                if now > deadline:
                    raise Unavailable("the limits cannot be looked up now") from None
                time.sleep(PAUSE_S)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


@lru_cache(1024)
def _digest(tenant: str, unit: Unit) -> bytes:
    return hashlib.blake2b(f"{unit}/{tenant}".encode(), digest_size=16).digest()
