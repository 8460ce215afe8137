"""Objects are closed where they list their properties, and only where that is safe."""

import json

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from common.grammar.closed_objects import close_objects
from common.grammar.matcher import compile_grammar, load_tokens
from common.grammar.translate import grammar_of
from tests.common.engine.schemas import SCHEMAS
from tests.common.grammar.test_grammar_regex import accepts
from tests.common.made_tokenizers import byte_level

A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
B = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}


def refers(name):
    return {"$ref": f"#/$defs/{name}"}


# schema, what it allows, what it does not allow (any more)
CASES = [
    (A, ['{"a":1}'], ['{"a":1,"x":2}', "{}"]),
    ({"type": "object"}, ['{"x":{"y":1}}'], ["1"]),
    ({"type": "object", "properties": {}}, ["{}"], ['{"x":1}']),
    ({**A, "additionalProperties": True}, ['{"a":1,"x":2}'], []),
    ({**A, "additionalProperties": {"type": "null"}}, ['{"a":1,"x":null}'], ['{"a":1,"x":2}']),
    ({**A, "patternProperties": {"^x": {"type": "null"}}}, ['{"a":1,"x":null}'], []),
    ({**A, "required": ["a", "c"]}, ['{"a":1,"c":2}'], []),
    ({**A, "minProperties": 2}, [], []),
    ({"properties": {"o": A}}, ['{"o":{"a":1}}'], ['{"o":{"a":1,"x":2}}', '{"o":{"a":1},"x":2}']),
    ({"type": "array", "items": A}, ['[{"a":1}]'], ['[{"a":1,"x":2}]']),
    ({"type": "array", "prefixItems": [A]}, ['[{"a":1}]'], ['[{"a":1,"x":2}]']),
    ({"additionalProperties": A}, ['{"k":{"a":1}}'], ['{"k":{"a":1,"x":2}}']),
    ({"anyOf": [A, B]}, ['{"a":1}', '{"b":1}'], ['{"a":1,"x":2}', '{"a":1,"b":2}']),
    ({"allOf": [A, B]}, ['{"a":1,"b":2}'], ['{"a":1}']),
    ({"allOf": [A]}, ['{"a":1}'], ['{"a":1,"x":2}']),
    ({**A, "anyOf": [B, {"properties": {"c": {}}}]}, ['{"a":1,"b":2}'], []),
    ({**refers("A"), "$defs": {"A": A}}, ['{"a":1}'], ['{"a":1,"x":2}']),
    ({**refers("A"), **B, "$defs": {"A": A}}, ['{"a":1,"b":2}'], ['{"a":1}']),
    (
        {"allOf": [refers("A"), B], "$defs": {"A": refers("A2"), "A2": A}},
        ['{"a":1,"b":2}'],
        ['{"b":2}'],
    ),
    (
        {"allOf": [{"properties": {"o": A}}, {"properties": {"p": A}}]},
        ['{"o":{"a":1},"p":{"a":2}}'],
        ['{"o":{"a":1,"x":2}}'],
    ),
    (
        {"properties": {"next": {"$ref": "#"}, "a": {"type": "integer"}}},
        ['{"next":{"next":{"a":1}}}'],
        ['{"next":{"x":1}}'],
    ),
    ({"const": {"properties": {"a": 1}}}, ['{"properties":{"a":1}}'], ["{}"]),
    ({"properties": {"properties": A}}, ['{"properties":{"a":1}}'], ['{"properties":{"x":1}}']),
]


@pytest.fixture(scope="module")
def tokens():
    return load_tokens(byte_level().to_str(), byte_level().get_vocab_size(), ())


@pytest.mark.parametrize(("schema", "accepted", "refused"), CASES)
def test_what_fits(schema, accepted, refused, tokens):
    validator = Draft202012Validator(schema)
    matcher = compile_grammar(tokens, grammar_of("json_schema", json.dumps(schema), {}))
    for text in accepted:
        validator.validate(json.loads(text))  # the case itself is right
        assert accepts(matcher, byte_level(), text), text
    for text in refused:
        assert not accepts(matcher, byte_level(), text), text


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "http://elsewhere/x"}, A]},
        {"allOf": [{"$ref": "#anchor"}, A]},
        {**A, "$dynamicRef": "#node"},
        {"allOf": [refers("missing"), B], "$defs": {"A": A}},
    ],
)
def test_nothing_is_closed_where_a_reference_leads_elsewhere(schema):
    copy = json.loads(json.dumps(schema))
    close_objects(copy)
    assert copy == schema


@pytest.mark.parametrize("name", SCHEMAS)
def test_closing_only_forbids(name):
    """Without the properties it adds, the schema is the client's."""

    def opened(value):
        if isinstance(value, dict):
            kept = {k: opened(v) for k, v in value.items()}
            if kept.get("additionalProperties") is False:
                del kept["additionalProperties"]
            return kept
        return [opened(each) for each in value] if isinstance(value, list) else value

    copy = json.loads(json.dumps(SCHEMAS[name]))
    close_objects(copy)
    assert opened(copy) == opened(json.loads(json.dumps(SCHEMAS[name])))
