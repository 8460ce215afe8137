"""KV events as vLLM writes them: MessagePack, an array per batch, a map per event.

Pure: prefix events of the engine in, bytes out.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from common.engine.prefix import short_hash
from common.engine.prefix_log import BlocksHeld, BlocksStored, PrefixEvent

RANK = 0  # an instance is one data-parallel rank


class Event(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """On the wire a map: `type`, then the fields, those at their default left out."""


class BlockStored(Event, frozen=True):
    block_hashes: tuple[int, ...]
    parent_block_hash: int | None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: int | None
    medium: str
    lora_name: str | None
    extra_keys: tuple[tuple[str, ...] | None, ...] | None = None  # per block


class BlockRemoved(Event, frozen=True):
    block_hashes: tuple[int, ...]
    medium: str


class AllBlocksCleared(Event, frozen=True):
    pass


def to_events(changes: Iterable[PrefixEvent], block_size: int, medium: str) -> list[Event]:
    return [
        _to_event(change, block_size, medium)
        for change in changes
        if not isinstance(change, BlocksHeld)
    ]


def encode_batch(time_s: float, events: list[Event]) -> bytes:
    """`time_s`: seconds since 1970."""
    return msgspec.msgpack.encode([time_s, events, RANK])


def _to_event(change: PrefixEvent, block_size: int, medium: str) -> Event:
    hashes = tuple(short_hash(digest) for digest in change.digests)
    if not isinstance(change, BlocksStored):
        return BlockRemoved(hashes, medium)
    is_salted_start = change.parent is None and change.salt
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=None if change.parent is None else short_hash(change.parent),
        token_ids=change.token_ids,
        block_size=block_size,
        lora_id=None,
        medium=medium,
        lora_name=None,
        extra_keys=((change.salt,), *(None,) * (len(hashes) - 1)) if is_salted_start else None,
    )
