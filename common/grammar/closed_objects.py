"""Objects of a schema that lists their properties have no others, unless the schema says so.

JSON schema leaves such objects open, and a small model then adds properties until its tokens run
out; OpenAI's strict schemas and other servers close them. An object stays open where several parts
of the schema describe it together (`allOf`, `$ref` beside `properties` …): each part lists only its
own properties, and closed parts would leave nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("prefixItems", "items", "allOf", "anyOf", "oneOf")
_SINGLE = (
    *("items", "additionalProperties", "additionalItems", "contains", "propertyNames"),
    *("unevaluatedProperties", "unevaluatedItems", "not", "if", "then", "else"),
)
# Keywords about the same value as the schema they stand in.
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_SAYS_MORE = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_OWN = (
    *("properties", "required", "minProperties", "maxProperties", "propertyNames"),
    *("dependentRequired", "dependencies", *_SAYS_MORE),
)


def close_objects(schema: Schema) -> None:
    """In place. `schema`: a tree, as JSON gives it: no part of it stands in two places."""
    nodes = list(_nodes(schema))
    shared = _sharing(schema, nodes)
    if shared is None:
        return
    for node in nodes:
        if id(node) not in shared and _num_parts(node) == 1 and _can_be_closed(node):
            node["additionalProperties"] = False


def _can_be_closed(node: Schema) -> bool:
    properties = node.get("properties")
    if not isinstance(properties, dict) or any(name in node for name in _SAYS_MORE):
        return False
    required, least = node.get("required", []), node.get("minProperties", 0)
    has_all = isinstance(required, list) and all(
        isinstance(name, str) and name in properties for name in required
    )
    return has_all and isinstance(least, int) and least <= len(properties)


def _sharing(root: Schema, nodes: list[Schema]) -> set[int] | None:
    """Ids of schemas that describe an object together with another one. None: a reference does
    not lead into this document, so nobody can tell."""
    found: set[int] = set()
    todo = [part for node in nodes if _num_parts(node) > 1 for part in _in_place(root, node)]
    while todo:
        part = todo.pop()
        if part is None:
            return None
        if id(part) not in found:
            found.add(id(part))
            todo += _in_place(root, part)
    return found


def _num_parts(node: Schema) -> int:
    """How many descriptions of one value meet in this schema."""
    return (
        any(name in node for name in _OWN)
        + len(_listed(node, "allOf"))
        + sum(name in node for name in ("anyOf", "oneOf", "$ref", "$dynamicRef", "not", "if"))
        + ("dependentSchemas" in node)
    )


def _in_place(root: Schema, node: Schema) -> list[Schema | None]:
    """The schemas that `node` puts on the same value; None: one that is not found."""
    parts: list[Any] = [part for name in _IN_PLACE_LISTS for part in _listed(node, name)]
    parts += [node[name] for name in _IN_PLACE if name in node]
    dependent = node.get("dependentSchemas")
    parts += dependent.values() if isinstance(dependent, dict) else ()
    found: list[Schema | None] = [part for part in parts if isinstance(part, dict)]
    if "$ref" in node:
        found.append(_target(root, node["$ref"]))
    if "$dynamicRef" in node:
        found.append(None)
    return found


def _target(root: Schema, reference: object) -> Schema | None:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and step.isdigit() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return None
    is_anchor = len(reference) > 1 and not reference.startswith("#/")
    return place if isinstance(place, dict) and not is_anchor else None


def _listed(node: Schema, name: str) -> list[Any]:
    value = node.get(name)
    return value if isinstance(value, list) else []


def _nodes(schema: Schema) -> Iterator[Schema]:
    """All schemas in it, itself first."""
    todo: list[Any] = [schema]
    while todo:
        node = todo.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for name in _MAPS:
            if isinstance(node.get(name), dict):
                todo += node[name].values()
        for name in _LISTS:
            todo += _listed(node, name)
        todo += [node[name] for name in _SINGLE if name in node]
