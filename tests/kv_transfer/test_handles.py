"""Only what our own processes have signed is a handle, and only as it was signed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from common.cluster_key import derive
from common.errors import HandleRefused
from common.wire import KVHandle
from kv_transfer.handles import HandleKey, check_content, content_of
from tests.kv_transfer.ends import ends

KEY = derive("the key of this fleet")
HANDLE = KVHandle("0" * 40, "p", "p-1", "tcp://10.0.0.1:5", "shm", "f", 20, 2, "c" * 32)


@pytest.mark.parametrize("key", [KEY, None])
def test_what_was_signed_is_accepted(key):
    keys = HandleKey(key)
    keys.check(keys.sign(HANDLE))
    assert keys.is_shared is (key is not None)


@pytest.mark.parametrize("field", KVHandle.__struct_fields__)
def test_no_field_can_be_changed(field):
    keys = HandleKey(KEY)
    signed = keys.sign(HANDLE)
    value = getattr(signed, field)
    other = value + 1 if isinstance(value, int) else value[:-1] + chr(ord(value[-1]) ^ 1)
    with pytest.raises(HandleRefused, match="altered"):
        keys.check(msgspec.structs.replace(signed, **{field: other}))


def test_neighbouring_fields_cannot_be_moved_into_one_another():
    keys = HandleKey(KEY)
    moved = msgspec.structs.replace(keys.sign(HANDLE), instance_id="", incarnation="pp-1")
    with pytest.raises(HandleRefused):
        keys.check(moved)


@pytest.mark.parametrize("other", [derive("the key of another fleet"), None])
def test_a_handle_of_another_key_is_refused(other):
    with pytest.raises(HandleRefused):
        HandleKey(KEY).check(HandleKey(other).sign(HANDLE))


def test_processes_with_the_cluster_key_believe_each_other():
    HandleKey(KEY).check(HandleKey(derive("the key of this fleet")).sign(HANDLE))


@pytest.mark.parametrize(
    ("tokens", "salt"),
    [((1, 2, 3), ""), ((2, 1, 3, 4), ""), ((1, 2, 3, 4), "s"), ((1, 2, 3, 4, 0), "")],
)
def test_a_handle_serves_its_own_prompt_only(tokens, salt):
    prompt = (1, 2, 3, 4)
    handle = msgspec.structs.replace(HANDLE, num_tokens=4, content=content_of(prompt, ""))
    check_content(handle, prompt, "")
    with pytest.raises(HandleRefused, match="another prompt"):
        check_content(handle, tokens, salt)


def test_a_consumer_with_the_cluster_key_calls_no_address_that_nobody_has_signed():
    async def body():
        async with ends(key=KEY) as both:
            handle = both.offer("r", [1, 2], first_token=5)
            forged = msgspec.structs.replace(handle, side_channel="tcp://127.0.0.1:9")
            with pytest.raises(HandleRefused):
                await both.fetch(forged, [0, 1])
            assert both.consumer.snapshot()["peers"] == 0  # nobody was called
            assert await both.fetch(handle, [0, 1]) == 5

    asyncio.run(body())
