"""The digest of what a producer has told about an offer: both ends make it, and compare at the end.

Messages come over TCP, in order, but nothing else vouches for their bits where there is no
encryption; and one bit of a block id, or of the first token, is another answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from kv_transfer.messages import Opened

_encoder = msgspec.msgpack.Encoder()


def digest(
    opened: Opened,
    block_ids: Sequence[int],
    epochs: Sequence[int],
    hashes: Sequence[str],
    checksums: Sequence[int],
    first_token: int | None,
) -> bytes:
    """16 bytes."""
    told = (opened, block_ids, epochs, hashes, checksums, first_token)
    return hashlib.blake2b(_encoder.encode(told), digest_size=16).digest()
