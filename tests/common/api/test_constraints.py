"""Which constraint a request's fields become, and which fields are refused, by name."""

import json

import pytest

from common.api.constraints import (
    MAX_CHOICES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    MAX_SCHEMA_BYTES,
    constraint_of,
)
from common.api.protocol import ChatRequest, CompletionRequest, GenerateSampling
from common.errors import BadRequest
from common.request import Constraint
from tests.common.api.apps import USER, InProcess, error_of, says

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
TAG = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}


def deep(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def response_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"structured_outputs": {"regex": None, "disable_fallback": True}}, None),
        ({"response_format": {"type": "json_object"}}, ("json_object", "", "response_format")),
        (
            {"response_format": response_format(SCHEMA)},
            ("json_schema", TEXT, "response_format.json_schema.schema"),
        ),
        ({"guided_json": SCHEMA}, ("json_schema", TEXT, "guided_json")),
        ({"guided_json": json.dumps(SCHEMA)}, ("json_schema", TEXT, "guided_json")),
        ({"guided_json": {}}, ("json_schema", "{}", "guided_json")),
        ({"guided_regex": r"\bx"}, ("regex", r"\bx", "guided_regex")),
        ({"guided_choice": ["ä", "b"]}, ("choice", '["ä", "b"]', "guided_choice")),
        ({"guided_grammar": "start: X"}, ("grammar", "start: X", "guided_grammar")),
        (
            {"structured_outputs": {"json": SCHEMA}},
            ("json_schema", TEXT, "structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": False}},
            ("json_object", "", "structured_outputs.json_object"),
        ),
        (
            {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
            ("structural_tag", json.dumps(TAG), "structured_outputs.structural_tag"),
        ),
    ],
)
def test_fields_become_a_constraint(fields, expected):
    constraint = None if expected is None else Constraint(*expected)
    ask = ChatRequest.model_validate({"messages": USER, **fields})
    assert constraint_of(ask) == constraint
    assert constraint_of(CompletionRequest.model_validate({"prompt": "x", **fields})) == constraint
    if "response_format" not in fields:
        assert constraint_of(GenerateSampling.model_validate(fields)) == constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": response_format("{")}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": deep(70)}, "guided_json"),
        ({"guided_json": "[" * 100_000}, "guided_json"),
        ({"guided_json": {"title": "x" * MAX_SCHEMA_BYTES}}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a" * (MAX_REGEX_BYTES + 1)}, "guided_regex"),
        ({"guided_regex": "\ud800"}, "guided_regex"),
        ({"guided_grammar": "a" * (MAX_GRAMMAR_BYTES + 1)}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["x"] * (MAX_CHOICES + 1)}, "guided_choice"),
        ({"structured_outputs": {"choice": "ab"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ],
)
def test_what_is_refused_names_its_field(fields, param):
    with pytest.raises(BadRequest) as refused:
        constraint_of(CompletionRequest.model_validate({"prompt": "x", **fields}))
    assert refused.value.param == param
    assert param.split(".")[0] in refused.value.message


def test_the_constraint_reaches_the_engine_from_every_endpoint():
    engine = says("x")
    app = InProcess(engine)
    assert app.chat(guided_regex="x", max_tokens=4).status_code == 200
    assert app.complete(structured_outputs={"regex": "x"}, max_tokens=4).status_code == 200
    sampling = {"guided_regex": "x", "max_tokens": 4}
    body = {"token_ids": [5], "sampling_params": sampling}
    assert app.post("/inference/v1/generate", body).status_code == 200
    found = [request.sampling.constraint for request in engine.requests]
    assert len(found) == 3 and all(each is not None for each in found)
    assert error_of(app.complete(guided_regex=""), 400)["param"] == "guided_regex"
