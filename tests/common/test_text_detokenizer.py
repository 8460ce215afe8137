"""Incremental detokenization against transformers' whole decode."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.text import TextModel
from tests.common import made_tokenizers
from tests.common.made_tokenizers import ALL, BYTEWISE, oracle

TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(made_tokenizers.CORPUS), max_size=2).map(" ".join),
    st.text(alphabet="héllo wörld ▁  👍🏽👨‍👩‍👧\n日本", max_size=40),
)
MODELS = {name: TextModel(make()) for name, make in ALL.items()}


def pieces_of(model, token_ids, prompt=(), skip=False):
    detokenizer = model.detokenizer(prompt, skip_special_tokens=skip)
    return [*map(detokenizer.push, token_ids), detokenizer.finish()]


@pytest.mark.parametrize("name", BYTEWISE)
@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_joined_pieces_are_the_whole_decode(name, text):
    model = MODELS[name]
    ids = model.encode(text)
    assert "".join(pieces_of(model, ids)) == oracle(name).decode(ids)
    assert model.decode(ids) == oracle(name).decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=100, deadline=None)
def test_arbitrary_tokens_decode_as_the_oracle_does(name, data, skip):
    """Tokens that no text encodes to: broken characters, special tokens in the middle."""
    model = MODELS[name]
    ids = data.draw(st.lists(st.integers(0, model.vocab_size - 1), max_size=30))
    expected = oracle(name).decode(ids)
    if skip:
        special = model.vocabulary.special_ids
        expected = oracle(name).decode([i for i in ids if i not in special])
    assert "".join(pieces_of(model, ids, skip=skip)) == expected


@pytest.mark.parametrize("name", BYTEWISE)
@given(prompt=TEXTS, answer=TEXTS)
@settings(max_examples=40, deadline=None)
def test_an_answer_reads_on_from_its_prompt(name, prompt, answer):
    """Prompt and answer together read as one text: no space lost or doubled between them."""
    model = MODELS[name]
    ids = model.encode(prompt + answer)
    for cut in range(len(ids)):
        before = oracle(name).decode(ids[:cut])
        if before.endswith("\ufffd"):
            continue  # the prompt ends inside a character
        joined = "".join(pieces_of(model, ids[cut:], prompt=ids[:cut]))
        assert before + joined == oracle(name).decode(ids)


@pytest.mark.parametrize("name", BYTEWISE)
def test_no_piece_ends_inside_a_character(name):
    model = MODELS[name]
    text = "a👨‍👩‍👧é日本🇫🇷"
    for piece in pieces_of(model, model.encode(text)):
        assert "\ufffd" not in piece


@pytest.mark.parametrize("name", BYTEWISE)
def test_a_character_is_given_out_with_its_last_token(name):
    """Nothing is held back longer than UTF-8 demands."""
    model = MODELS[name]
    text = "x 👍🏽 y"
    detokenizer = model.detokenizer(())
    ids = model.encode(text)
    shown = ""
    for n, token_id in enumerate(ids, 1):
        shown += detokenizer.push(token_id)
        certain = b"".join(model.vocabulary.bytes_of(i) for i in ids[:n]).decode("utf-8", "ignore")
        assert shown == certain.removeprefix(" " if name != "byte_level" else "")


def test_an_unfinished_character_ends_as_a_replacement():
    model = MODELS["byte_level"]
    ids = model.encode("👍")
    assert len(ids) > 1
    detokenizer = model.detokenizer(())
    assert [detokenizer.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.finish() == "\ufffd"


def test_a_prompt_may_end_inside_a_character():
    model = MODELS["byte_level"]
    ids = model.encode("👍")
    assert "".join(pieces_of(model, ids[-1:], prompt=ids[:-1])) == "👍"


def test_special_tokens_are_skipped_or_shown():
    model = MODELS["byte_level"]
    ids = model.encode("<|im_start|>hi<|im_end|>")
    assert "".join(pieces_of(model, ids, skip=True)) == "hi"
    assert "".join(pieces_of(model, ids, skip=False)) == "<|im_start|>hi<|im_end|>"


def test_a_broken_run_of_byte_tokens_keeps_its_valid_part():
    """The one deliberate difference from the tokenizers library, which would replace the run."""
    model = MODELS["byte_fallback"]
    ids = [model.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xff"]
    assert "".join(pieces_of(model, ids)) == "é\ufffd"
    assert oracle("byte_fallback").decode(ids) == "\ufffd" * 3


def test_ids_beyond_the_vocabulary_say_nothing():
    """Models have padded vocabularies; random weights do produce such tokens."""
    model = MODELS["byte_level"]
    assert "".join(pieces_of(model, [model.vocab_size + 5, *model.encode("hi")])) == "hi"


WORDS = ["quick", "brown", "fox", "hello", "world", "jumps"]


@given(text=st.lists(st.sampled_from(WORDS), max_size=8))
@settings(max_examples=50, deadline=None)
def test_other_decoders_go_through_a_window(text):
    model = MODELS["word_suffix"]
    assert not model.vocabulary.is_bytewise
    ids = model.encode(" ".join(text))
    assert "".join(pieces_of(model, ids)) == oracle("word_suffix").decode(ids) == " ".join(text)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(name):
    model = MODELS[name]
    text = "Hello world, 日本語 👍🏽 naïve"
    joined = b"".join(map(model.vocabulary.bytes_of, model.encode(text)))
    assert joined.decode().lstrip() == text


def test_work_per_token_does_not_grow():
    """A long answer of broken characters costs no more per token than a short one."""
    model = MODELS["byte_level"]
    lead = next(i for i in range(model.vocab_size) if model.vocabulary.bytes_of(i) == b"\xe4")
    detokenizer = model.detokenizer(())
    shown = [detokenizer.push(lead) for _ in range(20_000)]
    assert "".join(shown) + detokenizer.finish() == "\ufffd" * 20_000
    assert max(map(len, shown)) == 1
