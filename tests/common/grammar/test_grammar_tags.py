"""Structural tags and the other kinds: which texts the compiled grammar accepts."""

import json
from random import Random

import numpy as np
import pytest

from common.errors import BadRequest
from common.grammar.matcher import compile_grammar, load_tokens
from common.grammar.translate import grammar_of
from tests.common.grammar.test_grammar_regex import accepts
from tests.common.made_tokenizers import byte_level

OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
CALL = {"type": "json_schema", "json_schema": OBJECT}
STRUCTURES = {
    "structures": [
        {"begin": "<function=foo>", "schema": OBJECT, "end": "</function>"},
        {"begin": "<function=bar>", "schema": OBJECT, "end": "</function>"},
    ],
    "triggers": ["<function="],
}
THINK = {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"}


def tag(**spec):
    return {"format": spec}


CASES = [
    (
        "structural_tag",
        STRUCTURES,
        [
            *("hello", "", 'hi <function=foo>{"a":1}</function>'),
            'x<function=bar>{"a":1}</function> y <function=foo>{"a": 2}</function>',
        ],
        [
            *("hi <function=", "hi <function=baz>{}", '<function=foo>{"b":1}</function>'),
            '<function=foo>{"a":1}',
        ],
    ),
    (
        "structural_tag",
        tag(type="sequence", elements=[THINK, CALL]),
        ['<think>hm\n</think>{"a":1}'],
        ["<think>x", '{"a":1}', "<think></think>"],
    ),
    (
        "structural_tag",
        tag(type="or", elements=[{"type": "const_string", "value": "none"}, CALL]),
        ["none", '{"a": 3}'],
        ["", "some"],
    ),
    (
        "structural_tag",
        tag(
            type="tag",
            begin="<|im_start|>x",
            content={"type": "regex", "pattern": r"\b\d+\b"},
            end="y",
        ),
        ["<|im_start|>x12y"],
        ["x12y", "<|im_start|>x12"],
    ),
    (
        "structural_tag",
        tag(
            type="tags_with_separator",
            separator=",",
            at_least_one=True,
            tags=[{"begin": "[", "content": {"type": "const_string", "value": "q"}, "end": "]"}],
        ),
        ["[q]", "[q],[q]"],
        ["", "[q],", "[q][q]"],
    ),
    (
        "structural_tag",
        tag(
            type="triggered_tags",
            triggers=["<t"],
            at_least_one=True,
            stop_after_first=True,
            tags=[
                {
                    "begin": "<t>",
                    "content": {"type": "grammar", "grammar": 'root ::= "a" | "b"'},
                    "end": "</t>",
                }
            ],
        ),
        ["<t>a</t>", "ho <t>b</t>"],
        ["ho", "<t>a</t> x", "<t>c</t>"],
    ),
    ("structural_tag", THINK, ["<think> </think>"], ["", "<think>"]),
    ("grammar", 'root ::= ("a" | "b")+ "."', ["ab."], [".", "ab"]),
    ("grammar", 'start: A "b"+\nA: /x+/', ["xxbb"], ["b", "xx"]),
    ("choice", ["SPAM", "NOT_SPAM", "é\n😀", ""], ["SPAM", "NOT_SPAM", "é\n😀", ""], ["NOT"]),
    ("json_object", "", ["{}", '{"a": [1, null]}'], ["1", "[1]", '{"a":  1}']),
    ("json_schema", {"type": "string", "format": "no such"}, ['"a"'], ["1"]),
    (
        "json_schema",
        {"properties": {"format": {"const": "x"}}},
        ['{"format": "x"}'],
        ['{"format":1}'],
    ),
    ("json_schema", {"const": {"format": "kept"}}, ['{"format":"kept"}'], ["{}"]),
]


@pytest.fixture(scope="module")
def tokens():
    return load_tokens(byte_level().to_str(), byte_level().get_vocab_size(), ())


@pytest.mark.parametrize(("kind", "source", "accepted", "refused"), CASES)
def test_texts(kind, source, accepted, refused, tokens):
    text = source if isinstance(source, str) else json.dumps(source)
    specials = {"<|im_start|>": byte_level().token_to_id("<|im_start|>") or 0}
    matcher = compile_grammar(tokens, grammar_of(kind, text, specials))
    for each in accepted:
        assert accepts(matcher, byte_level(), each), each
    for each in refused:
        assert not accepts(matcher, byte_level(), each), each


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({"format": {"type": "qwen_xml"}}, "qwen_xml"),
        ({"format": {"type": "tag", "begin": 1}}, "begin"),
        ({"format": {**THINK, "content": {"type": "any_text", "max_tokens": 5}}}, "special"),
        ({"format": {**THINK, "content": {"type": "any_text", "max_tokens": -1}}}, "max_tokens"),
        ({"format": {"type": "any_tokens", "excludes": ["x"]}}, "special"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}] * 2}}, "any_text"),
        ({"structures": STRUCTURES["structures"], "triggers": ["<nope"]}, "trigger"),
        ({"structures": STRUCTURES["structures"], "triggers": []}, "triggers"),
        ([], "object"),
    ],
)
def test_a_bad_tag_is_named(source, why):
    with pytest.raises(BadRequest) as refused:
        grammar_of("structural_tag", json.dumps(source), {})
    assert why in refused.value.message


@pytest.mark.parametrize("budget", [0, 1, 9])
@pytest.mark.parametrize("opens", [True, False])
def test_text_of_so_many_tokens_at_most(budget, opens, tokens):
    """Random choices among what is allowed: reasoning is never longer, the rest is free."""
    opener, closer = "<|im_start|>", "<tool_call>"
    specials = {name: byte_level().token_to_id(name) or 0 for name in (opener, closer)}
    thinks = {
        "type": "tag",
        "begin": opener if opens else "",
        "content": {"type": "any_text", "max_tokens": budget},
        "end": closer,
    }
    spec = {"type": "sequence", "elements": [thinks, {"type": "any_tokens"}]}
    if opens:
        other = {"type": "any_tokens", "excludes": [opener]}
        spec = {"type": "or", "elements": [spec, other]}
    grammar = grammar_of("structural_tag", json.dumps({"format": spec}), specials)
    compiled, draw, lengths = compile_grammar(tokens, grammar), Random(5), set()
    for _ in range(40):
        matcher, said = compiled.deep_copy(), []
        if opens:
            said.append(specials[opener])
            matcher.consume_token(said[0])
        while specials[closer] not in said:
            mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.unpackbits(mask, bitorder="little").nonzero()[0].tolist()
            is_early = specials[closer] in allowed and draw.random() < 0.1
            said.append(specials[closer] if is_early else draw.choice(allowed))
            matcher.consume_token(said[-1])
            assert not matcher.is_error()
            assert len(said) <= opens + budget + 1
        lengths.add(len(said) - opens - 1)
        assert matcher.is_accepting()
        for token in (*specials.values(), 300):  # calls, for example, are told by such tokens
            assert matcher.validate_tokens([token]) == 1
    assert max(lengths) == budget
    if opens:
        free = compiled.deep_copy()
        ids = byte_level().encode("no thoughts", add_special_tokens=False).ids
        assert free.try_consume_tokens([*ids, specials[closer]]) == len(ids) + 1
        assert free.validate_tokens([specials[opener]]) == 0


@pytest.mark.parametrize("keyword", ["not", "if", "uniqueItems", "contains", "dependentRequired"])
def test_what_cannot_be_enforced_is_refused_by_name(keyword, tokens):
    lenient = {"x-guidance": {"lenient": True}, keyword: True if keyword == "uniqueItems" else {}}
    with pytest.raises(BadRequest) as refused:
        compile_grammar(tokens, grammar_of("json_schema", json.dumps(lenient), {}))
    assert keyword in refused.value.message
