"""What is kept per owner: bounded in count, bytes and age. Plain state; time is a parameter.

An owner is an API key. Nobody reaches another owner's entries, and when there is no room the oldest
entry of the owner with the most bytes goes, so that nobody can push out those who keep less.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    count: int = 4096
    size_bytes: int = 64 << 20
    age_s: float = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    size_bytes: int
    since: float


class Store(Generic[T]):
    """`now` is monotonic and must not fall from call to call."""

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        self._owners: dict[str, OrderedDict[str, _Entry[T]]] = {}  # each oldest first
        self._bytes: dict[str, int] = {}
        self.num_bytes = 0
        self.count = 0

    def put(self, owner: str, key: str, value: T, size_bytes: int, now: float) -> bool:
        """Keep `value`, as the owner's youngest. False: it is too big to be kept at all."""
        self.remove(owner, key, now)
        if size_bytes > self._limits.size_bytes or self._limits.count < 1:
            return False
        while (
            self.count >= self._limits.count
            or self.num_bytes + size_bytes > self._limits.size_bytes
        ):
            biggest = max(self._bytes, key=self._bytes.__getitem__)
            self._drop(biggest, next(iter(self._owners[biggest])))
        self._owners.setdefault(owner, OrderedDict())[key] = _Entry(value, size_bytes, now)
        self._bytes[owner] = self._bytes.get(owner, 0) + size_bytes
        self.num_bytes += size_bytes
        self.count += 1
        return True

    def get(self, owner: str, key: str, now: float) -> T | None:
        self._expire(now)
        if key not in self._owners.get(owner, {}):
            return None
        return self._owners[owner][key].value

    def remove(self, owner: str, key: str, now: float) -> T | None:
        """What was kept there, which it no longer is."""
        self._expire(now)
        if key not in self._owners.get(owner, {}):
            return None
        return self._drop(owner, key)

    def values(self, owner: str, now: float) -> Iterator[T]:
        """The owner's, youngest first."""
        self._expire(now)
        for entry in reversed(self._owners.get(owner, OrderedDict()).values()):
            yield entry.value

    def _expire(self, now: float) -> None:
        oldest_kept = now - self._limits.age_s
        for owner in list(self._owners):
            entries = self._owners[owner]
            while entries:
                key, entry = next(iter(entries.items()))
                if entry.since >= oldest_kept:
                    break
                self._drop(owner, key)

    def _drop(self, owner: str, key: str) -> T:
        entry = self._owners[owner].pop(key)
        self._bytes[owner] -= entry.size_bytes
        self.num_bytes -= entry.size_bytes
        self.count -= 1
        if not self._owners[owner]:
            del self._owners[owner], self._bytes[owner]
        return entry.value
