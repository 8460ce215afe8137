"""The side channel's messages: the documented bytes are the bytes, and nothing else decodes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import Decoder, WireError, encode
from kv_transfer import messages as m

PAGE = Path(__file__).parent.parent.parent / "docs" / "kv-transfer.md"
EXAMPLES = re.findall(r"```json\n(.*?)\n```\n\n```hex\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
TYPES = (
    m.Open,
    m.Renew,
    m.Read,
    m.Finish,
    m.Cancel,
    m.Opened,
    m.Ready,
    m.Renewed,
    m.Finished,
    m.Refused,
)
EITHER = Decoder(m.ToProducer | m.ToConsumer, m.MAX_KV_MESSAGE_BYTES)
CLAIM = "0" * 32


def restore_bytes(item):
    return bytes.fromhex(item["bytes"]) if set(item) == {"bytes"} else item


@pytest.mark.parametrize(("fields", "digits"), EXAMPLES)
def test_documented_bytes_are_what_they_are_said_to_be(fields, digits):
    data = bytes.fromhex(digits.replace("\n", ""))
    # The oracle is another implementation of MessagePack.
    expected = json.loads(fields, object_hook=restore_bytes)
    assert msgpack.unpackb(data) == expected
    message = EITHER(data)
    assert type(message).__name__ == expected[0]
    assert encode(message) == data


def test_every_message_is_documented():
    assert {json.loads(fields)[0] for fields, _ in EXAMPLES} == {each.__name__ for each in TYPES}


@pytest.mark.parametrize(
    "fields",
    [
        ["Finish"],
        ["Finish", None],
        ["Finish", "x" * 32],
        ["Finish", CLAIM.encode()],
        ["Open", CLAIM, ["0" * 40, "p", "1", "tcp://h:1", "shm", "f", 1], "f", "d", 2],
        ["Open", CLAIM, ["0" * 40, "p", "1", "tcp://h:1", "shm", "f", 1, 1], "f" * 1025, "d", 2],
        ["Finished", CLAIM, [1], b"x" * 33],
        ["Renew", [CLAIM] * 1025],
        ["Opened", CLAIM, 0.0, 1, 1, b""],
        ["Opened", CLAIM, float("nan"), 1, 1, b""],
        ["Opened", CLAIM, 1e9, 1, 1, b""],
        ["Opened", CLAIM, 1.0, 1, 0, b""],
        ["Opened", CLAIM, 1.0, -1, 1, b""],
        ["Opened", CLAIM, 1.0, 1, 1, b"x" * (257 << 10)],
        ["Ready", CLAIM, -1, [], [], [], False, None],
        ["Ready", CLAIM, 0, [-1], [1], [], False, None],
        ["Ready", CLAIM, 0, [2**31], [1], [], False, None],
        ["Ready", CLAIM, 0, [1.5], [1], [], False, None],
        ["Ready", CLAIM, 0, [1], [-1], [], False, None],
        ["Ready", CLAIM, 0, [1], [1], ["../../etc/passwd"], False, None],
        ["Ready", CLAIM, 0, [1] * 1025, [1] * 1025, [], False, None],
        ["Ready", CLAIM, 0, [], [], [], True, -1],
        ["Refused", CLAIM, "code", "x" * 1025],
        ["Unknown", CLAIM],
    ],
)
def test_what_is_out_of_bounds_does_not_decode(fields):
    with pytest.raises(WireError):
        EITHER(msgpack.packb(fields))


def test_a_newer_peer_may_append_fields():
    assert EITHER(msgpack.packb(["Finish", CLAIM, "news"])) == m.Finish(CLAIM)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data):
    try:
        message = EITHER(data)
    except WireError:
        return
    assert isinstance(message, TYPES)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([each.__name__ for each in TYPES]),
)
def test_any_fields_decode_or_are_refused(fields, name):
    tail = fields if isinstance(fields, list) else [fields]
    try:
        message = EITHER(msgpack.packb([name, *tail]))
    except WireError:
        return
    assert type(message).__name__ == name
