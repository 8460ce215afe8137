"""The API keys that are valid now: given as settings, read from a file, read again when asked.

Kept as digests, which have one length, so comparing them tells nothing about the keys'. Every
comparison takes as long as every other, wherever the right key stands.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from common.errors import ConfigError

log = logging.getLogger(__name__)


class KeyRing:
    def __init__(self, keys: tuple[str, ...] = (), file: str = "") -> None:
        """Raises ConfigError if a file is named and holds no key."""
        self._given = keys
        self._file = file
        self._digests = self._read()

    def __bool__(self) -> bool:
        return bool(self._digests)

    @property
    def is_from_file(self) -> bool:
        return bool(self._file)

    def reload(self) -> None:
        """Read the file again. If that fails, the keys stay as they are."""
        try:
            self._digests = self._read()
        except ConfigError as error:
            log.error("the API keys stay as they were: %s", error.message)
        else:
            log.info("%d API keys are valid now", len(self._digests))

    def find(self, key: bytes) -> str:
        """A name for the key's owner; empty if the key is not valid."""
        digest = digest_of(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex() if any(matches) else ""

    def _read(self) -> list[bytes]:
        found = read_keys(self._file) if self._file else ()
        return [digest_of(key.encode()) for key in (*self._given, *found)]


def read_keys(file: str) -> tuple[str, ...]:
    """One key a line; empty lines and those that begin with # do not count. Raises ConfigError."""
    try:
        lines = Path(file).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--api-key-file {file}: {reason}") from None
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-key-file {file}: there is no key in it")
    return keys


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
