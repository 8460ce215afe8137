"""Handles are minted and signed by producers, and checked before anything that they say is used.

With a cluster key every process of the fleet can check a signature, so a consumer connects to no
address that none of us has named. Without one (everything on loopback) each producer signs with a
key of its own, and checks what consumers show it: before it names a block.

The signature covers every other field. Single use is the lease table's business.
"""

from __future__ import annotations

import array
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from common.cluster_key import ClusterKey
from common.errors import HandleRefused
from common.wire import KVHandle, encode


class HandleKey:
    def __init__(self, key: ClusterKey | None) -> None:
        self.is_shared = key is not None
        self._secret = secrets.token_bytes(32) if key is None else key.handle

    def sign(self, handle: KVHandle) -> KVHandle:
        return replace(handle, signature=self._signature(handle))

    def check(self, handle: KVHandle) -> None:
        """Raises HandleRefused unless this key has signed exactly this handle."""
        expected = self._signature(handle)
        if not hmac.compare_digest(expected.encode(), handle.signature.encode()):
            raise HandleRefused("the handle was forged or altered")

    def _signature(self, handle: KVHandle) -> str:
        unsigned = encode(replace(handle, signature=""))
        return hmac.new(self._secret, b"handle" + unsigned, hashlib.sha256).hexdigest()


def content_of(token_ids: Sequence[int], salt: str) -> str:
    """What the KV is of: a handle never serves another prompt, whoever mixed them up."""
    digest = hashlib.sha256(hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest())
    digest.update(array.array("Q", token_ids).tobytes())
    return digest.hexdigest()[:32]


def check_content(handle: KVHandle, token_ids: Sequence[int], salt: str) -> None:
    """Raises HandleRefused if the handle stands for the KV of other tokens."""
    if handle.num_tokens != len(token_ids) or handle.content != content_of(token_ids, salt):
        raise HandleRefused("the handle is of another prompt")
