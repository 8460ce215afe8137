"""Masks that are made only where a choice is refused: the same tokens as with masks in advance."""

import json
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from common.engine.constraint_state import ConstraintState
from common.engine.sampler import Sampler
from common.engine.sequence import Sequence
from common.grammar.matcher import CompiledGrammar, compile_grammar, load_tokens
from common.grammar.translate import grammar_of
from tests.common.engine.constrained import EOS, VOCAB
from tests.common.engine.schemas import SCHEMAS
from tests.common.engine.standin_model import make_request
from tests.common.made_tokenizers import byte_level

CPU = torch.device("cpu")
CONSTRAINTS = [
    *(("json_schema", json.dumps(SCHEMAS[name])) for name in ("boolean", "flat", "tree", "enum")),
    ("json_object", ""),
    ("regex", r"\b[A-Z]{2}\d{4}\b"),
    ("choice", '["SPAM", "NOT_SPAM"]'),
    ("grammar", 'root ::= [a-c]{2,5} ("+" [0-9]+)* "."'),
    ("grammar", '%llguidance {"no_forcing": false}\nstart: "abcdefgh" /x+/'),
    (
        "structural_tag",
        json.dumps(
            {
                "structures": [{"begin": "<a>", "schema": SCHEMAS["flat"], "end": "</a>"}],
                "triggers": ["<a>"],
            }
        ),
    ),
]
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "top_p": 0.5},
    {"temperature": 1.0},
    {"temperature": 1.5, "repetition_penalty": 1.3},
    {"temperature": 0.7, "frequency_penalty": -1.0, "presence_penalty": 0.5},
    {"temperature": 1.2, "top_p": 0.8},
    {"temperature": 1.2, "top_k": 5, "repetition_penalty": 0.8},
    {"temperature": 2.0, "logit_bias": ((40, 3.0), (60, -100.0))},
]


@pytest.fixture(scope="module")
def tokens():
    return load_tokens(byte_level().to_str(), VOCAB, (EOS,))


def compiled(tokens, kind, text):
    matcher = compile_grammar(tokens, grammar_of(kind, text, {}))
    return CompiledGrammar(matcher, frozenset({EOS}))


def allowed_by(state):
    mask = np.frombuffer(state.matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(mask, bitorder="little")[:VOCAB].nonzero()[0].tolist()


@pytest.mark.parametrize(("kind", "text"), CONSTRAINTS)
def test_a_mask_allows_what_each_token_is_told_alone(kind, text, tokens):
    made, draw = compiled(tokens, kind, text), Random(1)
    state = ConstraintState(made, may_end=True, field="x")
    for _ in range(30):
        allowed = allowed_by(state)
        assert [token for token in range(VOCAB) if state.allows(token)] == [
            token for token in allowed if token != EOS
        ]
        state.accept(draw.choice([token for token in allowed if token != EOS] or [EOS]))
        if state.is_complete:
            state = ConstraintState(made, may_end=True, field="x")


@pytest.mark.parametrize(("kind", "text"), CONSTRAINTS)
def test_the_same_tokens_as_when_only_the_allowed_ones_are_there(kind, text, tokens):
    """Each row has a twin whose client names in `allowed_token_ids` what the grammar allows."""
    sampler, generator = Sampler(frozenset({EOS}), CPU), torch.Generator().manual_seed(3)
    made = compiled(tokens, kind, text)
    num_refused = 0
    outputs: list[list[int]] = [[] for _ in OPTIONS]
    states = [ConstraintState(made, may_end=True, field="x") for _ in OPTIONS]
    for _ in range(12):
        logits = torch.randn(len(OPTIONS), VOCAB, generator=generator) * 4
        rows, twins = [], []
        for options, said, state in zip(OPTIONS, outputs, states, strict=True):
            allowed = allowed_by(state)
            rows.append(sequence(said, options))
            rows[-1].constraint = state
            twins.append(sequence(said, {**options, "allowed_token_ids": tuple(allowed)}))
        for each in (*rows, *twins):
            sampler.prepare(each)
        found = sampler.sample(logits.clone(), rows)
        assert not found.errors
        assert found.token_ids == sampler.sample(logits.clone(), twins).token_ids
        free = [sequence(said, options) for options, said in zip(OPTIONS, outputs, strict=True)]
        for each in free:
            sampler.prepare(each)
        unbound = sampler.sample(logits.clone(), free).token_ids
        num_refused += sum(a != b for a, b in zip(unbound, found.token_ids, strict=True))
        for i, (token, state) in enumerate(zip(found.token_ids, states, strict=True)):
            outputs[i].append(token)
            state.accept(token)
            if state.is_complete or token == EOS:
                outputs[i] = []
                states[i] = ConstraintState(made, may_end=True, field="x")
    assert num_refused  # or nothing was tried out


def sequence(outputs, options):
    request = make_request("r", [1, 2, 3], 50, outputs=tuple(outputs), seed=11, **options)
    return Sequence(request, 0, frozenset({EOS}))
