"""What a client's answer must match: `response_format`, `structured_outputs` or `guided_*`.

Reads and bounds them; the engine compiles (common/grammar), and refuses what cannot be compiled. So
a bad field is a 400 with its name either way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from common.api.protocol import SamplingFields
from common.errors import BadRequest
from common.request import Constraint

MAX_SCHEMA_BYTES = 256 << 10  # also of a structural tag
MAX_GRAMMAR_BYTES = 64 << 10
MAX_REGEX_BYTES = 8 << 10
MAX_CHOICES_BYTES = 64 << 10
MAX_CHOICES = 4096
MAX_DEPTH = 64

# Choose among vLLM's backends: no effect here.
_HARMLESS = ("disable_fallback", "_backend", "_backend_was_auto", "backend")
_DEFAULTS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


def constraint_of(request: SamplingFields) -> Constraint | None:
    """The one constraint that a chat, completions or generate request asks for.

    Raises BadRequest naming the field, also if there are two.
    """
    found = [
        *_of_response_format(getattr(request, "response_format", None)),
        *_of_structured_outputs(request.structured_outputs),
        *_of_members(
            {
                name: getattr(request, f"guided_{name}")
                for name in ("json", "regex", "choice", "grammar")
            },
            "guided_",
        ),
    ]
    if len(found) > 1:
        names = " and ".join(constraint.field for constraint in found)
        raise BadRequest(f"only one constraint can hold, not {names}", found[1].field)
    return found[0] if found else None


def _of_response_format(value: dict[str, Any] | None) -> list[Constraint]:
    if value is None:
        return []
    field, kind = "response_format", value.get("type")
    if kind == "text":
        return []
    if kind == "json_object":
        return [Constraint("json_object", "", field)]
    if kind == "json_schema":
        wrapped = value.get("json_schema")
        if not isinstance(wrapped, dict) or wrapped.get("schema") is None:
            raise BadRequest(f"{field}.json_schema.schema is missing", f"{field}.json_schema")
        return [_json(wrapped["schema"], f"{field}.json_schema.schema")]
    if kind == "structural_tag":
        return [_structural_tag(value, field)]
    raise BadRequest(
        f"{field}.type must be text, json_object, json_schema or structural_tag", f"{field}.type"
    )


def _of_structured_outputs(value: dict[str, Any] | None) -> list[Constraint]:
    field = "structured_outputs"
    members = {name: member for name, member in (value or {}).items() if member is not None}
    for name in members.keys() - _READERS.keys():
        if name in _HARMLESS or (name in _DEFAULTS and members[name] is False):
            del members[name]
        else:
            raise BadRequest(f"{field} has a member that is not supported: {name[:64]!r}", field)
    found = _of_members(members, f"{field}.")
    if len(found) > 1:
        raise BadRequest(f"{field} must have exactly one of {', '.join(_READERS)}", field)
    return found


def _of_members(members: dict[str, Any], prefix: str) -> list[Constraint]:
    return [
        _READERS[name](value, f"{prefix}{name}")
        for name, value in members.items()
        if value is not None and not (name == "json_object" and value is False)
    ]


# --- one reader per kind --------------------------------------------------------------------------


def _json(value: Any, field: str) -> Constraint:
    """A schema as an object, or as its JSON."""
    if isinstance(value, str):
        value = _parsed(value, field)
    if not isinstance(value, dict):
        raise BadRequest(f"{field} must be a JSON schema: an object", field)
    return Constraint("json_schema", _dumped(value, field), field)


def _json_object(value: Any, field: str) -> Constraint:
    if value is not True:
        raise BadRequest(f"{field} must be true or false", field)
    return Constraint("json_object", "", field)


def _regex(value: Any, field: str) -> Constraint:
    return Constraint("regex", _bounded(value, field, MAX_REGEX_BYTES), field)


def _grammar(value: Any, field: str) -> Constraint:
    return Constraint("grammar", _bounded(value, field, MAX_GRAMMAR_BYTES), field)


def _choice(value: Any, field: str) -> Constraint:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadRequest(f"{field} must be a list of strings", field)
    if not 0 < len(value) <= MAX_CHOICES:
        raise BadRequest(f"{field} must have 1 to {MAX_CHOICES} strings", field)
    text = json.dumps(value, ensure_ascii=False)
    return Constraint("choice", _bounded(text, field, MAX_CHOICES_BYTES), field)


def _structural_tag(value: Any, field: str) -> Constraint:
    if isinstance(value, str):
        value = _parsed(value, field)
    if not isinstance(value, dict) or not ("format" in value or "structures" in value):
        raise BadRequest(
            f"{field} must be an object with format, or structures and triggers", field
        )
    return Constraint("structural_tag", _dumped(value, field), field)


_READERS: dict[str, Callable[[Any, str], Constraint]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}


def _parsed(text: str, field: str) -> Any:
    try:
        return json.loads(_bounded(text, field, MAX_SCHEMA_BYTES))
    except ValueError:
        raise BadRequest(f"{field} is not JSON", field) from None
    except RecursionError:
        raise _too_deep(field) from None


def _dumped(value: Any, field: str) -> str:
    if _is_deeper(value, MAX_DEPTH):
        raise _too_deep(field)
    return _bounded(json.dumps(value, ensure_ascii=False), field, MAX_SCHEMA_BYTES)


def _bounded(value: Any, field: str, max_bytes: int) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{field} must be a string that is not empty", field)
    try:
        num_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{field} holds half a surrogate pair", field) from None
    if num_bytes > max_bytes:
        raise BadRequest(f"{field} is {num_bytes} bytes long; at most {max_bytes} are read", field)
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Level by level: the check itself needs no deep stack."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _too_deep(field: str) -> BadRequest:
    return BadRequest(f"{field} is nested deeper than {MAX_DEPTH} levels", field)
