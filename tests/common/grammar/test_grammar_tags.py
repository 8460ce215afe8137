"""Structural tags and the other kinds: which texts the compiled grammar accepts."""

import json

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


@pytest.mark.parametrize("keyword", ["not", "if", "uniqueItems", "contains", "dependentRequired"])
def test_what_cannot_be_enforced_is_refused_by_name(keyword, tokens):
    lenient = {"x-guidance": {"lenient": True}, keyword: True if keyword == "uniqueItems" else {}}
    with pytest.raises(BadRequest) as refused:
        compile_grammar(tokens, grammar_of("json_schema", json.dumps(lenient), {}))
    assert keyword in refused.value.message
