"""Whatever bytes arrive: a valid message or `WireError`, nothing else, and soon."""

from __future__ import annotations

import contextlib
import time
import typing

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import wire
from common.request import EngineRequest, SamplingParams, TokenEvent
from common.wire import Decoder, WireError, encode, info_from_json, info_to_json
from kv_transfer import messages as m

SLOWEST_S = 0.5  # of CPU, for at most a megabyte; it takes milliseconds
INFO = wire.InstanceInfo(
    *("i", "1", "both", "http://h:1", "tcp://127.0.0.1:9", "", "m", "", 64, "f", "", 8, 4)
)
HANDLE = wire.KVHandle("a" * 40, "p", "1", "tcp://127.0.0.1:9", "shm", "f", 9, 2)
REQUEST = EngineRequest("r", tuple(range(40)), SamplingParams(max_tokens=5))
CLAIM = "0123456789abcdef" * 2
EXAMPLES = {
    "registry": (
        wire.ToRegistry,
        [wire.Register(INFO), wire.Deregister("i", "1"), wire.Follow("proxy")],
    ),
    "instance": (
        wire.ToInstance,
        [
            wire.Hello("proxy"),
            wire.RunPrefill(REQUEST, 1),
            wire.RunDecode(REQUEST, HANDLE, 2),
            wire.RunWhole(REQUEST, 3),
            wire.Abort("r"),
            wire.WatchPrefixes(),
            wire.SetRole("decode", 1.5),
            wire.LoadAdapter("sql", "adapters/sql"),
            wire.UnloadAdapter("sql"),
        ],
    ),
    "proxy": (
        wire.ToProxy,
        [
            wire.Welcome(INFO),
            wire.Load("1", 1, 2, 3, 4, 5),
            wire.Accepted("r", 1, HANDLE),
            wire.Tokens((TokenEvent("r", 0, (7,)),), (1,)),
            wire.Failed("r", 1, "internal_error", "it failed"),
            wire.Prefixes("1", 3, (2**64 - 1, 7), (0,)),
            wire.RoleSet("decode", "bad_request", "it has no weights"),
            wire.AdaptersChanged("1", (wire.AdapterInfo("sql", "5d1c", "/sql", "m"),)),
            wire.AdapterDone("sql", "invalid_value", "there is none"),
        ],
    ),
    "producer": (
        m.ToProducer,
        [
            m.Open(CLAIM, HANDLE, "f", "d"),
            m.Renew((CLAIM,)),
            m.Read(CLAIM, b"request", (3, 4)),
            m.Finish(CLAIM),
            m.Cancel(CLAIM),
        ],
    ),
    "consumer": (
        m.ToConsumer,
        [
            m.Opened(CLAIM, 10.0, 4, 64, b"region"),
            m.Ready(CLAIM, 0, (1, 2), (3, 4), (), True, 9),
            m.Renewed(),
            m.Finished(CLAIM, (3, 4), b"told"),
            m.Refused(CLAIM, "kv_peer_lost", "gone"),
        ],
    ),
}
links = pytest.mark.parametrize("link", EXAMPLES)
quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def check(link, data):
    """The message, or None; every other outcome fails the test."""
    union, _ = EXAMPLES[link]
    began = time.thread_time()
    try:
        found = Decoder(union)(data)
    except WireError as error:
        assert len(str(error)) < 10_000
        return None
    finally:
        assert time.thread_time() - began < SLOWEST_S
    assert isinstance(found, typing.get_args(union))
    assert Decoder(union)(encode(found)) == found
    return found


@links
def test_the_examples_are_valid(link):
    for message in EXAMPLES[link][1]:
        assert check(link, encode(message)) == message


@links
def test_every_message_has_an_example(link):
    union, examples = EXAMPLES[link]
    assert {type(message) for message in examples} == set(typing.get_args(union))


@links
@quick
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes(link, data):
    check(link, data)


@links
@quick
@given(data=st.data())
def test_mutated_messages(link, data):
    body = bytearray(encode(data.draw(st.sampled_from(EXAMPLES[link][1]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(body) - 1, 0)))
        match data.draw(st.sampled_from(("set", "cut", "insert", "double"))):
            case "set" if body:
                body[at] = data.draw(st.integers(0, 255))
            case "cut":
                del body[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                body[at:at] = data.draw(st.binary(max_size=12))
            case "double":
                body[at:at] = body[at:]
    check(link, bytes(body))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=25,
)


@links
@quick
@given(data=st.data())
def test_the_right_name_with_wrong_fields(link, data):
    name = type(data.draw(st.sampled_from(EXAMPLES[link][1]))).__name__
    fields = data.draw(st.lists(plain, max_size=10))
    check(link, msgspec.msgpack.encode([name, *fields]))


@links
@quick
@given(data=st.data())
def test_one_field_of_a_valid_message_is_wrong(link, data):
    message = data.draw(st.sampled_from(EXAMPLES[link][1]))
    fields = msgspec.msgpack.decode(encode(message))
    at = data.draw(st.integers(0, len(fields) - 1))
    fields[at] = data.draw(plain)
    check(link, msgspec.msgpack.encode(fields))


BOMBS = [
    b"\x91" * 100_000,
    b"\x81\xa1a" * 100_000,
    b"\xdd\xff\xff\xff\xff",  # an array that claims four thousand million entries
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\x92\xa5Renew\xdd\xff\xff\xff\xff",
    b"\x92\xa5Renew" + b"\x91" * 1000,
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xa5\xff\xfe\xfd\xfc\xfb",
    msgspec.msgpack.encode(["Renew", [CLAIM] * 20_000]),
    msgspec.msgpack.encode(["Hello", "x" * 900_000, 1]),
    msgspec.msgpack.encode([b"Hello", "x", 1]),
    msgspec.msgpack.encode({"type": "Hello"}),
]


@links
@pytest.mark.parametrize("data", BOMBS, ids=range(len(BOMBS)))
def test_bombs(link, data):
    found = check(link, data)
    assert found is None or isinstance(found, wire.Hello)


def test_size_is_checked_before_anything_is_read():
    with pytest.raises(WireError, match="at most 10"):
        Decoder(wire.ToInstance, 10)(encode(wire.Abort("a request id")))


@quick
@given(data=st.binary(max_size=300) | plain.map(lambda value: repr(value).encode()))
def test_instance_json_of_any_kind(data):
    with contextlib.suppress(WireError):
        assert isinstance(info_from_json(data), wire.InstanceInfo)


@quick
@given(name=st.sampled_from(wire.InstanceInfo.__struct_fields__), value=plain)
def test_instance_json_with_one_wrong_field(name, value):
    found = msgspec.json.decode(info_to_json(INFO))
    found[name] = value
    with contextlib.suppress(WireError):
        assert isinstance(info_from_json(msgspec.json.encode(found)), wire.InstanceInfo)


def test_instance_json_that_is_deep_or_large():
    for data in (b"[" * 100_000, b'{"a":' * 50_000, b"{" + b" " * 70_000 + b"}"):
        with pytest.raises(WireError):
            info_from_json(data)
