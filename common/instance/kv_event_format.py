"""KV events as vLLM writes them: MessagePack, an array per batch, a map per event.

Pure: prefix events of the engine in, bytes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from common.engine.prefix import short_hash
from common.engine.prefix_log import BlocksHeld, BlocksStored, PrefixEvent
from common.request import split_kv_salt

RANK = 0  # an instance is one data-parallel rank


BlockKeys = tuple[tuple[str, ...] | None, ...]


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
    extra_keys: BlockKeys | None = None  # per block


class BlockRemoved(Event, frozen=True):
    block_hashes: tuple[int, ...]
    medium: str


class AllBlocksCleared(Event, frozen=True):
    pass


NameOf = Callable[[str], str | None]  # of an adapter, by its digest


def no_name(digest: str) -> str | None:
    """Where there are no adapters."""
    return None


def to_events(
    changes: Iterable[PrefixEvent], block_size: int, medium: str, name_of: NameOf = no_name
) -> list[Event]:
    return [
        _to_event(change, block_size, medium, name_of)
        for change in changes
        if not isinstance(change, BlocksHeld)
    ]


def encode_batch(time_s: float, events: list[Event]) -> bytes:
    """`time_s`: seconds since 1970."""
    return msgspec.msgpack.encode([time_s, events, RANK])


def _to_event(change: PrefixEvent, block_size: int, medium: str, name_of: NameOf) -> Event:
    hashes = tuple(short_hash(digest) for digest in change.digests)
    if not isinstance(change, BlocksStored):
        return BlockRemoved(hashes, medium)
    salt, adapter = split_kv_salt(change.salt)
    # A digest for a name that nobody knows any more: it must not look like the model itself.
    name = (name_of(adapter) or adapter) if adapter else None
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=None if change.parent is None else short_hash(change.parent),
        token_ids=change.token_ids,
        block_size=block_size,
        lora_id=None,
        medium=medium,
        lora_name=name,
        extra_keys=_extra_keys(len(hashes), name, salt if change.parent is None else ""),
    )


def _extra_keys(num_blocks: int, name: str | None, salt: str) -> BlockKeys | None:
    """Per block: the adapter's name, and in a sequence's first block its salt; nil if nothing."""
    every = (name,) if name else ()
    first = (*every, salt) if salt else every
    return (first, *((every or None,) * (num_blocks - 1))) if first else None
