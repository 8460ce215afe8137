"""The API keys that are valid now: given as settings, read from a file, read again when asked.

Kept as digests, which have one length, so comparing them tells nothing about the keys'. Every
comparison takes as long as every other, wherever the right key stands.

A line of the file is a key, and after it what its owner may have, if that is not the default:

    KEY [requests-per-minute=N] [tokens-per-minute=N] [weight=W]
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import dataclass
from pathlib import Path

from common.admission.rate_limit import UNITS, Rates
from common.errors import ConfigError

log = logging.getLogger(__name__)

MAX_RATE = 10**12
MAX_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the owner of a key may have. A rate that is None is the server's default."""

    rates: Rates = Rates()
    weight: float = 1.0  # share of a full fleet, beside the other keys that wait for it


class KeyRing:
    def __init__(self, keys: tuple[str, ...] = (), file: str = "") -> None:
        """Raises ConfigError if a file is named and holds no key."""
        self._given = keys
        self._file = file
        self._terms = self._read()

    def __bool__(self) -> bool:
        return bool(self._terms)

    @property
    def is_from_file(self) -> bool:
        return bool(self._file)

    def reload(self) -> None:
        """Read the file again. If that fails, the keys stay as they are."""
        try:
            self._terms = self._read()
        except ConfigError as error:
            log.error("the API keys stay as they were: %s", error.message)
        else:
            log.info("%d API keys are valid now", len(self._terms))

    def find(self, key: bytes) -> str:
        """A name for the key's owner; empty if the key is not valid."""
        digest = digest_of(key)
        matches = [hmac.compare_digest(digest, known) for known in self._terms]
        return digest.hex() if any(matches) else ""

    def terms_of(self, owner: str) -> Terms:
        """Of a name that `find` gave; the defaults for everybody else."""
        return self._terms.get(bytes.fromhex(owner), Terms())

    def _read(self) -> dict[bytes, Terms]:
        found = dict.fromkeys(self._given, Terms())
        if self._file:
            found |= _read_lines(self._file)
        return {digest_of(key.encode()): terms for key, terms in found.items()}


def read_keys(file: str) -> tuple[str, ...]:
    """One key a line; empty lines and those that begin with # do not count. Raises ConfigError."""
    return tuple(_read_lines(file))


def _read_lines(file: str) -> dict[str, Terms]:
    try:
        lines = Path(file).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--api-key-file {file}: {reason}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            try:
                found[words[0]] = _terms(words[1:])
            except ValueError as error:  # never the line itself: it holds the key
                raise ConfigError(f"--api-key-file {file}, line {number}: {error}") from None
    if not found:
        raise ConfigError(f"--api-key-file {file}: there is no key in it")
    return found


def _terms(words: list[str]) -> Terms:
    given: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("requests-per-minute", "tokens-per-minute", "weight") or name in given:
            raise ValueError(
                "after the key may follow requests-per-minute=N, tokens-per-minute=N and weight=W, "
                "each once"
            )
        try:
            given[name] = float(value) if name == "weight" else int(value)
        except ValueError:
            raise ValueError(f"{name} must be a number") from None
        if not 0 < given[name] <= (MAX_WEIGHT if name == "weight" else MAX_RATE):
            raise ValueError(f"{name} is out of range")
    rates = {unit: given.get(f"{unit}-per-minute") for unit in UNITS}
    whole = {unit: int(rate) for unit, rate in rates.items() if rate is not None}
    return Terms(Rates(**whole), given.get("weight", 1.0))


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
