"""A sealed hand-over: opens with its key and unchanged, or not at all."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cluster_key import derive
from common.handle_seal import MAX_SEALED_CHARS, prompt_digest, seal, unseal
from common.request import EngineRequest, SamplingParams
from common.wire import KVHandle

KEY = derive("a key of enough characters").seal
HANDLE = KVHandle("00ff" * 10, "p0", "4f1c", "tcp://127.0.0.1:41002", "shm", "f=1", 3, 1)


def request(prompt=(1, 2, 3), outputs=(), salt=""):
    return EngineRequest("r", tuple(prompt), SamplingParams(1), tuple(outputs), cache_salt=salt)


def test_what_was_sealed_comes_out():
    found = unseal(KEY, seal(KEY, HANDLE, request()))
    assert found is not None
    assert found.handle == HANDLE
    assert found.prompt == prompt_digest(request())


def test_another_fleet_cannot_open_it():
    assert unseal(derive("another key of that length").seal, seal(KEY, HANDLE, request())) is None


@settings(deadline=None)
@given(st.data())
def test_no_changed_byte_is_taken(data):
    raw = bytearray(base64.urlsafe_b64decode(seal(KEY, HANDLE, request())))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    assert unseal(KEY, base64.urlsafe_b64encode(bytes(raw)).decode()) is None


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_of_a_stranger_is_taken(text):
    assert unseal(KEY, text) is None


@pytest.mark.parametrize("cut", [1, 4, 44, 100])
def test_a_part_is_not_taken(cut):
    text = seal(KEY, HANDLE, request())
    assert unseal(KEY, text[cut:]) is None
    assert unseal(KEY, text[:-cut]) is None


def test_a_long_text_is_not_even_decoded():
    assert unseal(KEY, "A" * (MAX_SEALED_CHARS + 4)) is None


def test_prompts_and_tenants_are_told_apart():
    digests = [
        prompt_digest(made)
        for made in (
            request(),
            request((1, 2)),
            request((1, 2, 4)),
            request(salt="tenant"),
            request(salt="other"),
        )
    ]
    assert len(set(digests)) == len(digests)
    assert prompt_digest(request((1, 2), (3,))) == prompt_digest(request((1, 2, 3)))
