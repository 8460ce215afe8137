"""The byte-exact examples of docs/kv-events.md, against an independent MessagePack library."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgpack
import pytest

from common.engine.prefix_log import BlocksHeld, BlocksRemoved, BlocksStored
from common.instance.kv_event_format import (
    AllBlocksCleared,
    BlockStored,
    encode_batch,
    to_events,
)
from common.instance.kv_events_config import KVEventsConfig
from common.request import kv_salt_of

PAGE = (Path(__file__).parents[3] / "docs" / "kv-events.md").read_text()
EXAMPLES = {
    name: (json.loads(text), bytes.fromhex(digits))
    for name, text, digits in re.findall(
        r"### ([^\n]+)\n.*?```json\n(.*?)```\n```hex\n(.*?)```", PAGE, re.DOTALL
    )
}


def digest(number):
    return b"\xff" * 24 + number.to_bytes(8, "big")


STORED = BlocksStored(
    (digest(16045690984833335023), digest(42)), None, tuple(range(1, 9)), "tenant"
)
CONTINUED = BlocksStored((digest(7),), digest(42), (9, 10, 11, 12), "tenant")
OF_ADAPTER = BlocksStored(
    (digest(9), digest(10)), None, tuple(range(1, 9)), kv_salt_of("tenant", "5d1c")
)
REMOVED = BlocksRemoved((digest(7), digest(42)))

OURS = {
    "BlockStored": encode_batch(1793000000.5, to_events([STORED], 4, "CPU")),
    "BlockStored, continued": encode_batch(1793000001.0, to_events([CONTINUED], 4, "CPU")),
    "BlockStored, of an adapter": encode_batch(
        1793000001.5, to_events([OF_ADAPTER], 4, "CPU", {"5d1c": "sql"}.get)
    ),
    "BlockRemoved": encode_batch(1793000002.0, to_events([REMOVED], 4, "GPU")),
    "AllBlocksCleared": encode_batch(1793000003.0, [AllBlocksCleared()]),
}


@pytest.mark.parametrize("name", sorted(OURS))
def test_example(name):
    value, data = EXAMPLES[name]
    assert msgpack.packb(value) == data
    assert OURS[name] == data


def test_an_adapter_whose_name_is_forgotten_is_not_taken_for_the_model():
    (event,) = to_events([OF_ADAPTER], 4, "CPU")
    assert isinstance(event, BlockStored)
    assert event.lora_name == "5d1c"
    assert event.extra_keys == (("5d1c", "tenant"), ("5d1c",))


def test_every_example_is_checked():
    assert EXAMPLES.keys() == OURS.keys()


def test_the_tables_name_all_settings():
    for name in KVEventsConfig.__struct_fields__:
        assert f"| `{name}` |" in PAGE


def test_what_was_there_before_anybody_listened_is_no_event():
    assert to_events([BlocksHeld((digest(1),))], 4, "CPU") == []
