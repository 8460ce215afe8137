"""Outputs of pure noise at temperature 1.5: whatever is complete is valid.

Oracles: the `jsonschema` package, Python's `re`.
"""

import json
import re

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from common.request import Constraint
from tests.common.engine.constrained import (
    CLOSING,
    EOS,
    TEXT,
    VOCAB,
    ask,
    constrained_engine,
    run_all,
    running_compiler,
)
from tests.common.engine.schemas import SCHEMAS

SEEDS = range(8)


@pytest.fixture(scope="module")
def compiler():
    with running_compiler() as made:
        yield made


def answers_to(compiler, constraint, *, max_tokens=300, **options):
    """(text, reason) per seed; the last two are greedy and with top_p."""
    engine = constrained_engine(compiler)
    requests = [
        ask(str(seed), constraint, seed=seed, max_tokens=max_tokens, **options) for seed in SEEDS
    ]
    requests.append(ask("greedy", constraint, max_tokens=max_tokens, temperature=0.0, **options))
    requests.append(ask("top_p", constraint, max_tokens=max_tokens, top_p=0.7, top_k=20, **options))
    answers = run_all(engine, requests)
    assert not answers.failed
    return [(answers.text(name), answers.reason(name)) for name in answers.tokens]


def test_there_are_enough_schemas():
    assert len(SCHEMAS) >= 40


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_complete_answer_fits_its_schema(name, compiler):
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    constraint = Constraint("json_schema", json.dumps(schema))
    complete = 0
    for text, reason in answers_to(compiler, constraint, logit_bias=CLOSING):
        if reason == "stop":
            validator.validate(json.loads(text))
            complete += 1
    assert complete >= 5


def test_a_json_object(compiler):
    texts = answers_to(compiler, Constraint("json_object", ""), logit_bias=CLOSING)
    complete = [json.loads(text) for text, reason in texts if reason == "stop"]
    assert len(complete) >= 5
    assert all(isinstance(value, dict) for value in complete)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\b[A-Z]{2}\d{4}\b", r"\b\w{1,9}\b", r"^\d{3}-\d{4}$", r"(?i)(yes|no)[.!]?"),
        *(r"[\w.+-]{1,8}@[a-z]{1,8}\.[a-z]{2,3}", r"(?=.*\d)(?=.*[a-z])[a-z0-9]{6,10}"),
        *(r"(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}", r"\S{5}\s\S{5}"),
        *(
            r"[^\W\d_]{3,9}",
            r"[^\s\d]{4}[\D]",
            r"(?!foo)[fo]{3}",
            r"\bfoo\b(?:.{0,3}\bbar\b)?",
            r"😀{2,3}|ü{4}",
        ),
    ],
)
def test_a_regex(pattern, compiler):
    for text, reason in answers_to(compiler, Constraint("regex", pattern), max_tokens=150):
        assert reason == "stop"
        assert re.fullmatch(pattern, text), text


def test_choices(compiler):
    choices = ["SPAM", "NOT_SPAM", "SPAM and more", "größe 😀"]
    constraint = Constraint("choice", json.dumps(choices))
    engine = constrained_engine(compiler)
    answers = run_all(engine, [ask(str(n), constraint, seed=n, temperature=9.0) for n in range(30)])
    assert all(answers.reason(name) == "stop" for name in answers.tokens)
    assert {answers.text(name) for name in answers.tokens} == set(choices)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= sum\nsum ::= term ("+" term)*\nterm ::= [0-9]{1,3} | "(" sum ")"',
        'start: sum\nsum: term ("+" term)*\nterm: /[0-9]{1,3}/ | "(" sum ")"',
    ],
)
def test_a_grammar(grammar, compiler):
    texts = answers_to(compiler, Constraint("grammar", grammar))
    complete = [text for text, reason in texts if reason == "stop"]
    assert len(complete) >= 5
    for text in complete:
        assert re.fullmatch(r"[0-9+()]+", text)
        assert isinstance(_sum_of(text), int)


def _sum_of(text):
    """Sums and parentheses by hand: innermost pair first."""
    while inner := re.search(r"\(([0-9+]+)\)", text):
        text = text[: inner.start()] + str(_sum_of(inner[1])) + text[inner.end() :]
    return sum(map(int, text.split("+")))


def test_a_structural_tag(compiler):
    call = {"begin": "<f>", "schema": SCHEMAS["flat"], "end": "</f>"}
    tag = {
        "type": "triggered_tags",
        "triggers": ["<f"],
        "at_least_one": True,
        "stop_after_first": True,
        "tags": [
            {
                "begin": call["begin"],
                "end": call["end"],
                "content": {"type": "json_schema", "json_schema": call["schema"]},
            }
        ],
    }
    trigger = [(token, 9.0) for token in _tokens_of(b"<f")]
    texts = answers_to(
        compiler,
        Constraint("structural_tag", json.dumps({"format": tag})),
        logit_bias=tuple(sorted({**dict(CLOSING), **dict(trigger)}.items())),
    )
    complete = [text for text, reason in texts if reason == "stop"]
    assert len(complete) >= 3
    for text in complete:
        match = re.fullmatch(r"(?s)(.*?)<f>(.*)</f>", text)
        assert match
        Draft202012Validator(SCHEMAS["flat"]).validate(json.loads(match[2]))


def _tokens_of(characters):
    wanted = [bytes([character]) for character in characters]
    return [token for token in range(VOCAB) if TEXT.vocabulary.bytes_of(token) in wanted]


def test_the_end_token_comes_only_where_the_grammar_may_end(compiler):
    """`a{3,}`: not before three, and sooner or later afterwards."""
    engine = constrained_engine(compiler)
    constraint = Constraint("regex", "a{3,}")
    bias = ((EOS, 4.0),)
    requests = [ask(str(seed), constraint, seed=seed, logit_bias=bias) for seed in range(30)]
    answers = run_all(engine, requests)
    for name, tokens in answers.tokens.items():
        assert answers.reason(name) == "stop"
        assert tokens[-1] == EOS and EOS not in tokens[:-1]
        assert answers.last[name].stop_token_id is None
        assert re.fullmatch("a{3,}", answers.text(name))
