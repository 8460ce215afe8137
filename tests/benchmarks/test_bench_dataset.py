from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.dataset import RandomShape, random_requests, text_requests
from benchmarks.vocabulary import IdVocabulary, TokenizerVocabulary
from common.errors import ConfigError

IDS = IdVocabulary(500)
SHAPE = RandomShape(input_len=20, output_len=6)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**31))
def test_the_first_requests_do_not_depend_on_how_many_follow(few, more, seed):
    shape = RandomShape(12, 8, prefix_len=3, range_ratio=0.5)
    short = random_requests(few, shape, IDS, seed, as_text=False)
    long = random_requests(few + more, shape, IDS, seed, as_text=False)
    assert long[:few] == short


def test_lengths_are_exact_and_ids_are_ordinary():
    requests = random_requests(50, SHAPE, IDS, 0, as_text=False)
    assert {len(r.prompt) for r in requests} == {20} == {r.input_len for r in requests}
    assert {r.output_len for r in requests} == {6}
    assert {token for r in requests for token in r.prompt} <= set(range(16, 500))
    assert len({r.prompt for r in requests}) == 50


def test_seed_decides_the_prompts():
    first, again, other = (random_requests(5, SHAPE, IDS, s, as_text=False) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_prefix_is_shared_and_nothing_more():
    shape = RandomShape(10, 4, prefix_len=7)
    prompts = [r.prompt for r in random_requests(30, shape, IDS, 0, as_text=False)]
    assert {len(p) for p in prompts} == {17}
    assert len({p[:7] for p in prompts}) == 1
    assert len({p[:10] for p in prompts}) == 30


def test_range_ratio_reaches_both_ends_and_no_further():
    shape = RandomShape(100, 10, prefix_len=5, range_ratio=0.3)
    requests = random_requests(3000, shape, IDS, 0, as_text=False)
    inputs = np.array([len(r.prompt) - 5 for r in requests])
    outputs = np.array([r.output_len for r in requests])
    assert (inputs.min(), inputs.max()) == (70, 130)
    assert (outputs.min(), outputs.max()) == (7, 13)
    assert inputs.mean() == pytest.approx(100, abs=2)


@pytest.mark.parametrize(
    "shape", [(0, 1, 0, 0.0), (1, 0, 0, 0.0), (1, 1, -1, 0.0), (1, 1, 0, 1.0), (1, 1, 0, -0.1)]
)
def test_refuses_impossible_shapes(shape):
    with pytest.raises(ConfigError):
        RandomShape(*shape)


def test_made_up_words_are_as_many_and_as_different_as_their_ids():
    text = IDS.text_of(list(range(16, 500)))
    assert len(set(text.split())) == 484


def test_tokenizer_leaves_special_tokens_out(tokenizer_file):
    vocabulary = TokenizerVocabulary.load(tokenizer_file.parent)
    drawn = set(vocabulary.draw(np.random.default_rng(0), 20_000))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    assert drawn == set(range(tokenizer.get_vocab_size())) - {0, 1}


def test_text_has_the_wanted_number_of_tokens(tokenizer_file):
    vocabulary = TokenizerVocabulary.load(tokenizer_file)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    requests = random_requests(40, RandomShape(64, 4), vocabulary, 0, as_text=True)
    lengths = [len(tokenizer.encode(r.prompt, add_special_tokens=False).ids) for r in requests]
    assert set(lengths) == {64}


@pytest.mark.parametrize("content", ["{}", "not json"])
def test_tokenizer_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="--tokenizer"):
        TokenizerVocabulary.load(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        TokenizerVocabulary.load(tmp_path / "none.json")


def test_lines_in_order_and_again_from_the_top(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo words\u2028still two\n", encoding="utf-8")
    requests = text_requests(3, file, 9, None, chat=False)
    assert [r.prompt for r in requests] == ["one", "two words\u2028still two", "one"]
    assert [(r.index, r.output_len, r.input_len) for r in requests] == [
        (0, 9, None),
        (1, 9, None),
        (2, 9, None),
    ]


def test_tokenizer_counts_text(tmp_path, tokenizer_file):
    file = tmp_path / "prompts.txt"
    file.write_text("the fox\n")
    vocabulary = TokenizerVocabulary.load(tokenizer_file)
    expected = len(Tokenizer.from_file(str(tokenizer_file)).encode("the fox").ids)
    assert text_requests(1, file, 9, vocabulary, chat=False)[0].input_len == expected


def test_json_lines(tmp_path):
    messages = [{"role": "user", "content": "hello"}]
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "text", "output_len": 3}, {"messages": messages}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    text, chat = text_requests(2, file, 9, None, chat=True)
    assert (text.prompt, text.output_len, text.is_messages) == ("text", 3, False)
    assert (chat.prompt, chat.output_len, chat.is_messages) == (tuple(messages), 9, True)


def test_json_token_ids(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [5, 6, 7]}')
    (request,) = text_requests(1, file, 9, None, chat=False)
    assert (request.prompt, request.input_len) == ((5, 6, 7), 3)
    with pytest.raises(ConfigError, match="line 1: token ids need"):
        text_requests(1, file, 9, None, chat=True)


@pytest.mark.parametrize(
    "row",
    [
        "nope",
        "[]",
        "{}",
        '{"prompt": "a", "messages": []}',
        '{"prompt": ""}',
        '{"prompt": [1, -1]}',
        '{"prompt": [true]}',
        '{"messages": ["hello"]}',
        '{"prompt": "a", "output_len": 0}',
        '{"prompt": "a", "output_len": "9"}',
        '{"messages": [{"role": "user", "content": "not for completions"}]}',
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + row)
    with pytest.raises(ConfigError, match="line 2: "):
        text_requests(2, file, 9, None, chat=False)


def test_no_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n")
    with pytest.raises(ConfigError, match="no prompts"):
        text_requests(1, file, 9, None, chat=False)
    with pytest.raises(ConfigError, match="cannot read"):
        text_requests(1, tmp_path / "none", 9, None, chat=False)
