"""What must be so of a handle before a consumer contacts anybody: pure comparison, no I/O.

A block size other than ours is no obstacle: what is read is split and merged by tokens
(token_map.py). Everything else that a fingerprint names must be equal.
"""

from __future__ import annotations

from common.errors import LayoutMismatch, TransferError
from common.fingerprint import block_size_of, incompatible_fields
from common.wire import KVHandle
from kv_transfer.claim import Remote
from kv_transfer.handles import HandleKey
from kv_transfer.identity import KVIdentity
from kv_transfer.token_map import num_blocks


def check_handle(
    handle: KVHandle, ours: KVIdentity, connector: str, block_bytes: int, keys: HandleKey
) -> Remote:
    """How the producer's pool must look. Raises HandleRefused, LayoutMismatch or TransferError.

    connector, block_bytes:  ours
    """
    if keys.is_shared:
        keys.check(handle)
    if handle.connector != connector:
        raise LayoutMismatch(f"connector is {handle.connector} there, {connector} here")
    check_layouts(ours.kv_fingerprint, handle.kv_fingerprint)
    if not handle.side_channel.startswith("tcp://"):
        raise TransferError("the handle names no side channel")
    remote = _remote(ours.kv_fingerprint, handle.kv_fingerprint, block_bytes)
    if num_blocks(handle.num_tokens, remote.block_size) != handle.num_blocks:
        raise TransferError(
            f"the handle offers {handle.num_blocks} blocks for {handle.num_tokens} tokens"
        )
    return remote


def check_layouts(ours: str, theirs: str) -> None:
    """Raises LayoutMismatch, naming the fields, if these fingerprints cannot exchange blocks."""
    differing = [
        f"{name} ({left}, {right})" for name, left, right in incompatible_fields(ours, theirs)
    ]
    if differing:
        raise LayoutMismatch(f"KV layouts do not match: differing {', '.join(differing)}")


def _remote(ours: str, theirs: str, block_bytes: int) -> Remote:
    our_size, size = block_size_of(ours), block_size_of(theirs)
    if not our_size or not size:
        raise LayoutMismatch("KV layouts do not match: block_size is missing")
    return Remote(size, block_bytes // our_size * size)
