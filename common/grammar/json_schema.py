"""A client's JSON schema as llguidance is to read it: strict, closed, bounded white space.

llguidance refuses what it cannot enforce (`not`, `if`, `uniqueItems` …) by name, so an answer that
it ends is valid. A `format` it does not know is an annotation by the standard: it is left out here.
"""

from __future__ import annotations

import json
from typing import Any

from common.errors import BadRequest
from common.grammar.closed_objects import close_objects

KNOWN_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
# Between tokens of JSON: a space, or a line break with its indentation; or a weak model adds white
# space until its tokens run out.
_OPTIONS = {"whitespace_pattern": r" |\n[ \t]{0,24}", "lenient": False}
_IN_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DIRECT = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")


def read_schema(text: str) -> dict[str, Any]:
    """For a grammar's `json_schema` or `%json`. Raises BadRequest."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest("the schema is not JSON") from None
    return prepared(schema)


def prepared(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise BadRequest("a JSON schema must be an object")
    made: dict[str, Any] = _without_annotations(schema)
    close_objects(made)
    return {**made, "x-guidance": _OPTIONS}


def _without_annotations(schema: Any) -> Any:
    """Recursive: the front end bounds the depth, Python the rest."""
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "x-guidance" or (name == "format" and value not in KNOWN_FORMATS):
            continue
        if name in _IN_MAPS and isinstance(value, dict):
            value = {key: _without_annotations(each) for key, each in value.items()}
        elif name in _IN_LISTS and isinstance(value, list):
            value = [_without_annotations(each) for each in value]
        elif name in _DIRECT:
            value = _without_annotations(value)
        kept[name] = value
    return kept
