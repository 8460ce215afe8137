"""Names for prefixes: one SHA-256 digest per block, chained, so equal digests mean equal prefixes.

The chain starts from the model's fingerprint and the request's salt: neither two models nor two
tenants ever share a name. Knows nothing of blocks or who owns them.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray


class PrefixHasher:
    def __init__(self, fingerprint: str, block_size: int) -> None:
        self._fingerprint = sha256(fingerprint.encode()).digest()
        self._block_size = block_size

    def extend(
        self, digests: list[bytes], tokens: NDArray[np.int64], num_tokens: int, salt: str
    ) -> None:
        """Append the digests of the full blocks in `tokens[:num_tokens]` that `digests` lacks."""
        size = self._block_size
        parent = digests[-1] if digests else self._root(salt)
        for start in range(len(digests) * size, num_tokens - size + 1, size):
            parent = sha256(parent + tokens[start : start + size].tobytes()).digest()
            digests.append(parent)

    def partial(
        self, digests: list[bytes], tokens: NDArray[np.int64], num_tokens: int, salt: str
    ) -> bytes:
        """Digest of the unfilled block that follows the full blocks named by `digests`."""
        parent = digests[-1] if digests else self._root(salt)
        return sha256(
            parent + tokens[len(digests) * self._block_size : num_tokens].tobytes()
        ).digest()

    def full_blocks(self, token_ids: Iterable[int], salt: str) -> list[bytes]:
        tokens = np.array(tuple(token_ids), dtype="<i8")
        digests: list[bytes] = []
        self.extend(digests, tokens, len(tokens), salt)
        return digests

    def _root(self, salt: str) -> bytes:
        return sha256(self._fingerprint + salt.encode("utf-8", "surrogatepass")).digest()


def short_hash(digest: bytes) -> int:
    """A digest as the 64-bit number by which it is known outside: its last 8 bytes, big-endian."""
    return int.from_bytes(digest[-8:], "big")
