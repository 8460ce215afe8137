"""Constrained outputs of noise that run out of tokens: closed in time, and valid.

Oracles: the `jsonschema` package; the same request run on from any of its tokens.
"""

import json
import time

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from common.grammar.matcher import CompiledGrammar
from common.request import Constraint
from tests.common.engine.constrained import (
    EOS,
    TEXT,
    ask,
    constrained_engine,
    run_all,
    running_compiler,
)
from tests.common.engine.schemas import SCHEMAS

FORM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "sub": {}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def compiler():
    with running_compiler() as made:
        yield made


def json_schema(schema):
    return Constraint("json_schema", json.dumps(schema))


def end_len(compiler, constraint):
    """Tokens of the shortest output that the closer finds."""
    made = compiler.submit(constraint)
    deadline = time.monotonic() + 60
    while made.outcome is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert isinstance(made.outcome, CompiledGrammar)
    return made.outcome.end_len


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_that_runs_out_of_tokens_fits_its_schema(name, compiler):
    validator, constraint = Draft202012Validator(SCHEMAS[name]), json_schema(SCHEMAS[name])
    shortest = end_len(compiler, constraint)
    if shortest is None:
        assert name == "many properties"  # its end is longer than what is looked for
        return
    requests = [
        ask(f"{spare}-{seed}", constraint, seed=seed, max_tokens=max(1, shortest + spare), **more)  # type: ignore[arg-type]
        for spare in (0, 3, 40)
        for seed, more in enumerate([{}, {"temperature": 0.0}, {"top_p": 0.7}])
    ]
    answers = run_all(constrained_engine(compiler), requests)
    assert not answers.failed
    for request in requests:
        text = answers.text(request.request_id)
        if name == "map of at least two":  # llguidance counts names that are there twice
            assert len(json.loads(text, object_pairs_hook=list)) >= 2
        else:
            validator.validate(json.loads(text))


def test_reasons_are_honest(compiler):
    """`length` where the output was closed for want of tokens, `stop` where it ended by itself."""
    requests = [ask(str(n), json_schema(FORM), seed=n, max_tokens=60) for n in range(12)]
    choice = Constraint("choice", '["yes", "no"]')
    requests.append(ask("own", choice, max_tokens=3))
    answers = run_all(constrained_engine(compiler), requests)
    for n in range(12):
        assert answers.reason(str(n)) == "length"
        assert set(json.loads(answers.text(str(n)))) >= {"name", "age"}
    assert answers.reason("own") == "stop"


def test_with_tokens_to_spare_nothing_changes(compiler):
    """The same tokens under two limits, up to where the lower one makes room for the end."""
    made = [ask(str(limit), json_schema(FORM), seed=4, max_tokens=limit) for limit in (150, 300)]
    answers = run_all(constrained_engine(compiler), made)
    short, long = answers.tokens["150"], answers.tokens["300"]
    shared = 150 - 3 * (end_len(compiler, json_schema(FORM)) or 0)
    assert shared > 40 and short[:shared] == long[:shared] and short != long


@pytest.mark.parametrize("seed", range(3))
def test_another_instance_closes_alike(seed, compiler):
    request = ask("whole", json_schema(FORM), seed=seed, max_tokens=90)
    whole = run_all(constrained_engine(compiler), [request]).tokens["whole"]
    parts = {
        str(k): ask(str(k), json_schema(FORM), seed=seed, max_tokens=90, outputs=tuple(whole[:k]))
        for k in (1, 40, 70, len(whole) - 3, len(whole) - 1)
    }
    answers = run_all(constrained_engine(compiler), list(parts.values()))
    for name, request in parts.items():
        assert [*request.output_token_ids, *answers.tokens[name]] == whole, name


def test_where_no_end_fits_the_answer_is_cut(compiler):
    constraint = Constraint("regex", r"\d{3}( \d{3}){20}")
    answers = run_all(constrained_engine(compiler), [ask("a", constraint, max_tokens=9)])
    assert answers.reason("a") == "length" and len(answers.tokens["a"]) == 9


def test_a_clients_own_limits_on_tokens_come_first(compiler):
    """The end would need tokens that the client forbids."""
    quote = TEXT.encode('"')[0]
    bias = ((quote, -100.0), (EOS, -100.0))
    request = ask("a", json_schema({"type": "string"}), max_tokens=9, logit_bias=bias)
    answers = run_all(constrained_engine(compiler), [request])
    assert not answers.failed and len(answers.tokens["a"]) == 9


def test_tool_calls_are_never_closed(compiler):
    """Half an argument must not look like a whole one."""
    call = {
        "type": "tag",
        "begin": "<call>",
        "content": {"type": "json_schema", "json_schema": FORM},
        "end": "</call>",
    }
    tag = {"type": "structural_tag", "format": call}
    constraint = Constraint("structural_tag", json.dumps(tag))
    assert end_len(compiler, constraint) is None
    answers = run_all(constrained_engine(compiler), [ask("a", constraint, max_tokens=60)])
    assert answers.reason("a") == "length" and not answers.text("a").endswith("</call>")
