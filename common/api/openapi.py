"""/openapi.json: what each operation takes and gives. Bodies come from the types that check them,
inlined per operation, answers from answer_schemas.py, refusals are told here; tests hold the server
to all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from common.api.answer_schemas import ANSWERS, Schema
from common.api.anthropic.errors import is_messages_path

_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"

_EMPTY = frozenset({"/inference/v1/abort_requests"})
_PLAIN = frozenset({"/metrics"})
_FOLLOWED = frozenset({"/v1/responses/{response_id}"})  # GET streams if asked to

_SEQUENCE_NUMBER: Schema = {"type": "string", "pattern": "^[0-9]+$"}
_QUERIES: dict[str, dict[str, Schema]] = {
    "GET /v1/responses/{response_id}": {
        "stream": {"enum": ["true", "false"], "default": "false"},
        "starting_after": _SEQUENCE_NUMBER,
    },
    "GET /v1/responses/{response_id}/input_items": {
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "order": {"enum": ["asc", "desc"], "default": "desc"},
        "after": {"type": "string"},
        "before": {"type": "string"},
    },
}

_ALWAYS = {401: "the API key is missing or wrong", 414: "the URL is too long"}
_ALWAYS |= {431: "too many headers", 500: "our fault; it has been logged"}
_WITH_BODY = {400: "a field is wrong or not supported", 404: "there is no such model"}
_WITH_BODY |= {408: "the body did not arrive in time", 413: "the body is too large"}
_WITH_BODY |= {415: "the body is not application/json"}
_WITH_WORK = {429: "the queue is full", 503: "no instance can take it now", 504: "out of time"}

_OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def describe(method: str, path: str, bodies: Sequence[type[BaseModel]]) -> Schema:
    """The operation, beyond what its path says. It takes one of `bodies`."""
    path = path.replace(":path", "")
    told: Schema = {
        "responses": {"200": _answer(method, path, bodies), **_refusals(method, path, bodies)}
    }
    queries = _QUERIES.get(f"{method} {path}", {})
    names = re.findall(r"\{(\w+)\}", path)
    if names or queries:
        told["parameters"] = [
            *(_parameter(name, "path", {"type": "string"}) for name in names),
            *(_parameter(name, "query", schema) for name, schema in queries.items()),
        ]
    if bodies:
        schemas = [_schema(body) for body in bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        told["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return told


def _parameter(name: str, place: str, schema: Schema) -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _answer(method: str, path: str, bodies: Sequence[type[BaseModel]]) -> Schema:
    if path in _EMPTY:
        return {"description": "done"}
    if path in _PLAIN:
        return {"description": "metrics", "content": {_TEXT: {"schema": {"type": "string"}}}}
    schema = ANSWERS.get(f"{method} {path}", {"type": "object"})
    content: Schema = {_JSON: {"schema": schema}}
    if path in _FOLLOWED or any("stream" in body.model_fields for body in bodies):
        content[_EVENTS] = {"schema": {"type": "string"}}
    return {"description": "the answer", "content": content}


def _refusals(method: str, path: str, bodies: Sequence[type[BaseModel]]) -> Schema:
    reasons = dict(_ALWAYS)
    if bodies:
        reasons |= _WITH_BODY | _WITH_WORK
    elif "{" in path:
        reasons |= {400: "a parameter is wrong", 404: "there is nothing of this name"}
    if method == "GET" or path == "/ping":
        reasons[503] = "no request can make progress now"
    is_messages = is_messages_path(path)
    if is_messages:
        reasons[529] = reasons.pop(503)
    schema = _ANTHROPIC_ERROR if is_messages else _OPENAI_ERROR
    content = {_JSON: {"schema": schema}}
    return {
        str(status): {"description": reason, "content": content}
        for status, reason in sorted(reasons.items())
    }


def _schema(body: type[BaseModel]) -> Schema:
    """With its definitions put in place, because references would point outside the operation."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})
    resolved = _resolve(schema, definitions)
    assert isinstance(resolved, dict)
    return resolved


def _resolve(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_resolve(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if isinstance(reference := node.get("$ref"), str):
        return _resolve(definitions[reference.rpartition("/")[2]], definitions)
    return {name: _resolve(each, definitions) for name, each in node.items()}
