"""KV events as a consumer of vLLM's would declare them: msgspec structs written from the contract.

Strict: a field that the contract does not name, a missing one or another type is an error.
"""

from __future__ import annotations

import msgspec
import pytest

from common.engine.prefix_log import BlocksRemoved, BlocksStored
from common.instance.kv_event_format import AllBlocksCleared as Cleared
from common.instance.kv_event_format import encode_batch, to_events
from common.instance.kv_events import END

BlockHash = int | bytes


class Event(msgspec.Struct, tag=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class BlockStored(Event):
    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[object, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(Event):
    block_hashes: list[BlockHash]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


DECODE = msgspec.msgpack.Decoder(Batch).decode


def digest(number):
    return bytes(24) + number.to_bytes(8, "big")


def read(changes, block_size=4, medium="CPU"):
    return DECODE(encode_batch(12.5, to_events(changes, block_size, medium)))


def test_a_batch_is_an_array_of_time_events_and_rank():
    assert DECODE(encode_batch(12.5, [Cleared()])) == Batch(12.5, [AllBlocksCleared()], 0)


@pytest.mark.parametrize("medium", ["CPU", "GPU"])
def test_stored_blocks(medium):
    tokens = tuple(range(8))
    (event,) = read(
        [BlocksStored((digest(1), digest((1 << 64) - 1)), None, tokens, "")], 4, medium
    ).events
    assert event == BlockStored([1, (1 << 64) - 1], None, list(tokens), 4, None, medium, None)


def test_a_salt_is_an_extra_key_of_the_first_block_only():
    first = BlocksStored((digest(1), digest(2)), None, tuple(range(8)), "tenant")
    later = BlocksStored((digest(3),), digest(2), tuple(range(4)), "tenant")
    one, other = read([first, later]).events
    assert one.extra_keys == [("tenant",), None]
    assert len(one.extra_keys) == len(one.block_hashes)
    assert (other.parent_block_hash, other.extra_keys) == (2, None)


def test_removed_blocks_and_the_order_of_a_batch():
    stored = BlocksStored((digest(7),), digest(6), (1, 2, 3, 4), "")
    found = read([BlocksRemoved((digest(5), digest(6))), stored])
    assert found.events[0] == BlockRemoved([5, 6], "CPU")
    assert isinstance(found.events[1], BlockStored)


def test_what_is_at_its_default_is_left_out():
    raw = msgspec.msgpack.decode(
        encode_batch(0.0, to_events([BlocksStored((digest(1),), None, (1, 2), "")], 2, "CPU"))
    )
    assert set(raw[1][0]) == {
        *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size"),
        *("lora_id", "medium", "lora_name"),
    }


def test_the_end_of_a_replay_is_minus_one():
    assert int.from_bytes(END, "big", signed=True) == -1
    assert len(END) == 8
