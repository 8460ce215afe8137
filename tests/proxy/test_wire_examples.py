"""The byte-exact examples of docs/proxy.md, against an independent MessagePack library."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgpack
import pytest

from common.wire import Decoder, ToInstance, ToProxy, ToRegistry, encode

PAGE = (Path(__file__).parents[2] / "docs" / "proxy.md").read_text()
EXAMPLES = re.findall(r"### (\w+)\n.*?```json\n(.*?)```\n```hex\n(.*?)```", PAGE, re.DOTALL)
DECODERS = [Decoder(union) for union in (ToRegistry, ToInstance, ToProxy)]


def known_names():
    return {cls.__name__ for union in (ToRegistry, ToInstance, ToProxy) for cls in union.__args__}


def test_every_message_has_an_example():
    assert {name for name, _, _ in EXAMPLES} | {"RunWhole"} == known_names()


@pytest.mark.parametrize(("name", "text", "digits"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_example(name, text, digits):
    data = bytes.fromhex(digits)
    assert msgpack.packb(json.loads(text)) == data
    understood = []
    for decode in DECODERS:
        try:
            understood.append(decode(data))
        except Exception as error:
            assert type(error).__name__ == "WireError"
    assert [type(message).__name__ for message in understood] == [name]
    assert encode(understood[0]) == data


@pytest.mark.parametrize(("name", "text", "digits"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_a_newer_peer_may_append_fields(name, text, digits):
    data = msgpack.packb([*json.loads(text), "something new"])
    assert any(_decodes(decode, data) for decode in DECODERS)


def _decodes(decode, data):
    try:
        return bool(decode(data))
    except Exception:
        return False
