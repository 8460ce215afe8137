"""The bodies of our endpoints for /openapi.json: schemas of protocol.py, inlined per operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel


def describe(bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The `requestBody` of an operation that takes one of `bodies`."""
    if not bodies:
        return {}
    schemas = [_schema(body) for body in bodies]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _schema(body: type[BaseModel]) -> dict[str, Any]:
    """With its definitions put in place, because references would point outside the operation."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})
    resolved = _resolve(schema, definitions)
    assert isinstance(resolved, dict)
    return resolved


def _resolve(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolve(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if isinstance(reference := node.get("$ref"), str):
        return _resolve(definitions[reference.rpartition("/")[2]], definitions)
    return {name: _resolve(each, definitions) for name, each in node.items()}
