"""Prompts whose beginning is stored: the same tokens as without, and less is computed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from kv_transfer.transport.block_file import HEADER_BYTES
from tests.roles.test_hand_over import make, pair


def run(directory, made, **more):
    """On fresh instances; what they say, and how many tokens prefill found stored."""

    async def body():
        async with pair("shared_storage", storage_dir=str(directory), **more) as both:
            tokens = await both.run(made)
            (first, *_) = both.proxy.events["p"][made.request_id]
            await both.at_rest()
            return tokens, first.num_cached_tokens

    return asyncio.run(body())


def expected_of(made):
    async def body():
        async with pair() as both:
            return await both.whole(made)

    return asyncio.run(body())


@pytest.mark.parametrize("length", [16, 200])
def test_what_one_instance_computed_another_one_loads(tmp_path, length):
    expected = expected_of(make("whole", length))
    assert run(tmp_path / "kv", make("first", length)) == (expected, 0)
    full_blocks = (length - 1) // 16 * 16  # the last token's logits are always computed
    assert run(tmp_path / "kv", make("second", length)) == (expected, full_blocks)
    again = run(tmp_path / "kv", make("third", length), prefix_cache=False)
    assert again == (expected, 0)


def test_a_damaged_file_is_computed_again_with_the_same_tokens(tmp_path):
    expected = expected_of(make("whole", 200))
    run(tmp_path / "kv", make("first", 200))
    files = sorted(path for path in tmp_path.glob("kv/*/*/*") if path.is_file())
    for path in files[::3]:
        data = bytearray(path.read_bytes())
        data[HEADER_BYTES + 100] ^= 8
        path.write_bytes(data)
    tokens, num_cached = run(tmp_path / "kv", make("second", 200))
    assert tokens == expected and num_cached < 192
    assert run(tmp_path / "kv", make("third", 200)) == (expected, 192)  # stored anew


def test_another_salt_finds_nothing(tmp_path):
    run(tmp_path / "kv", make("first", 64))
    salted = msgspec.structs.replace(make("second", 64), cache_salt="tenant-2")
    assert run(tmp_path / "kv", salted)[1] == 0


def test_a_decode_instance_that_has_to_compute_loads_what_is_stored(tmp_path):
    """Whether a prompt comes whole or its load has failed: the store is the other source."""
    expected = expected_of(make("whole", 200))

    async def body():
        async with pair("shared_storage", storage_dir=str(tmp_path / "kv")) as both:
            assert await both.run(make("first", 200)) == expected
        async with pair("shared_storage", storage_dir=str(tmp_path / "kv")) as both:
            made = make("failed", 200)
            await both.start(made)
            both.prefill.abort("failed")
            await both.proxy.until(lambda: both.proxy.finished("d", "failed"))
            assert both.proxy.tokens("failed") == expected
            assert both.decode.counts.recomputes == 1
            assert both.proxy.events["d"]["failed"][0].num_cached_tokens == 192
            await both.at_rest()
        async with pair("shared_storage", storage_dir=str(tmp_path / "kv")) as both:
            assert await both.whole(make("whole", 200)) == expected
            assert both.proxy.events["d"]["whole"][0].num_cached_tokens == 192
            await both.at_rest()

    asyncio.run(body())
