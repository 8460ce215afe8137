"""Structural tags: free text with constrained parts, as xgrammar and vLLM describe them, to Lark.

Both forms: `{"structures": [{begin, schema, end}], "triggers": […]}` and `{"format": {…}}` with
const_string, json_schema, regex, grammar, any_text, sequence, or, optional, star, plus, tag,
triggered_tags and tags_with_separator. Anything else is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import BadRequest
from common.grammar.json_schema import prepared
from common.grammar.python_regex import regex_to_lark

_TEXT = "/(?s:.)*/"


def structural_tag_grammar(
    text: str, special_ids: Mapping[str, int], to_lark: Callable[[str], str]
) -> tuple[str, list[dict[str, Any]]]:
    """Lark, and the named grammars that it uses, for llguidance. Raises BadRequest.

    special_ids:  special tokens, which are not spelled but generated whole
    to_lark:      reads an embedded grammar
    """
    try:
        tag = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest("the structural tag is not JSON") from None
    if not isinstance(tag, dict):
        raise BadRequest("a structural tag must be an object")
    format_ = _from_structures(tag) if "structures" in tag else tag.get("format", tag)
    return _Builder(special_ids, to_lark).build(format_)


def _from_structures(tag: dict[str, Any]) -> dict[str, Any]:
    tags = [
        {
            "begin": entry.get("begin"),
            "content": {"type": "json_schema", "json_schema": entry.get("schema", {})},
            "end": entry.get("end"),
        }
        for entry in _objects(tag, "structures")
    ]
    return {"type": "triggered_tags", "tags": tags, "triggers": tag.get("triggers")}


class _Builder:
    def __init__(self, special_ids: Mapping[str, int], to_lark: Callable[[str], str]) -> None:
        self._special_ids = special_ids
        self._to_lark = to_lark
        self._lines: list[str] = []
        self._grammars: list[dict[str, Any]] = []
        self._specials = (
            re.compile("|".join(map(re.escape, sorted(special_ids, key=len, reverse=True))))
            if special_ids
            else None
        )

    def build(self, format_: Any) -> tuple[str, list[dict[str, Any]]]:
        start = self._format(format_)
        return "\n".join([f"start: {start}", *self._lines]), self._grammars

    # --- formats ---------------------------------------------------------------------------------

    def _format(self, spec: Any) -> str:
        """A Lark expression of rules."""
        kind = spec.get("type") if isinstance(spec, dict) else None
        method = getattr(self, f"_read_{kind}", None) if isinstance(kind, str) else None
        if method is None:
            raise BadRequest(f"structural tag: format {str(kind)[:32]!r} is not supported")
        found: str = method(spec)
        return found

    def _read_const_string(self, spec: dict[str, Any]) -> str:
        return self._literal(_string(spec, "value")) or '""'

    def _read_json_schema(self, spec: dict[str, Any]) -> str:
        if spec.get("style", "json") != "json":
            raise BadRequest("structural tag: json_schema has style 'json' only")
        return self._embed({"json_schema": prepared(spec.get("json_schema"))})

    def _read_regex(self, spec: dict[str, Any]) -> str:
        return self._embed({"lark_grammar": regex_to_lark(_string(spec, "pattern"))})

    def _read_grammar(self, spec: dict[str, Any]) -> str:
        return self._embed({"lark_grammar": self._to_lark(_string(spec, "grammar"))})

    def _read_any_text(self, spec: dict[str, Any]) -> str:
        if spec.get("excludes"):
            raise BadRequest("structural tag: any_text.excludes is not supported")
        return self._rule(_TEXT, terminal=True)

    def _read_any_tokens(self, spec: dict[str, Any]) -> str:
        """All that the model could say, special tokens too, but those excluded."""
        names = _strings(spec, "excludes") if spec.get("excludes") else []
        if unknown := [name for name in names if name not in self._special_ids]:
            raise BadRequest(f"structural tag: {unknown[0][:32]!r} is no special token")
        ids = ",".join(str(self._special_ids[name]) for name in names)
        return self._rule(f"<[^{ids}]>*" if ids else "<[*]>*")

    def _read_sequence(self, spec: dict[str, Any]) -> str:
        elements = _objects(spec, "elements")
        if any(element.get("type") == "any_text" for element in elements[:-1]):
            raise BadRequest("structural tag: any_text must come last or be in a tag")
        return self._rule(" ".join(map(self._format, elements)))

    def _read_or(self, spec: dict[str, Any]) -> str:
        return self._rule(" | ".join(map(self._format, _objects(spec, "elements"))))

    def _read_optional(self, spec: dict[str, Any]) -> str:
        return self._rule(f"({self._format(spec.get('content'))})?")

    def _read_star(self, spec: dict[str, Any]) -> str:
        return self._rule(f"({self._format(spec.get('content'))})*")

    def _read_plus(self, spec: dict[str, Any]) -> str:
        return self._rule(f"({self._format(spec.get('content'))})+")

    def _read_tag(self, spec: dict[str, Any]) -> str:
        return self._tag(spec, _string(spec, "begin"))

    def _read_triggered_tags(self, spec: dict[str, Any]) -> str:
        """Free text; where a trigger appears in it, one of its tags must follow."""
        groups = [self._group(spec, trigger) for trigger in _strings(spec, "triggers")]
        tags = _objects(spec, "tags")
        for tag in tags:
            if not any(_string(tag, "begin").startswith(t) for t in spec["triggers"]):
                raise BadRequest("structural tag: a tag begins with none of the triggers")
        called = f"({' | '.join(groups)})"
        text = self._rule(_TEXT, terminal=True)
        if spec.get("stop_after_first"):
            return self._rule(called if spec.get("at_least_one") else f"{called} | {text}")
        return self._rule(f"{called}{'+' if spec.get('at_least_one') else '*'} {text}")

    def _group(self, spec: dict[str, Any], trigger: str) -> str:
        """Text up to a trigger, and the rest of one of the tags that begin with it."""
        rests = [
            self._tag(tag, _string(tag, "begin")[len(trigger) :])
            for tag in _objects(spec, "tags")
            if _string(tag, "begin").startswith(trigger)
        ]
        if not rests:
            raise BadRequest("structural tag: a trigger begins none of the tags")
        if trigger in self._special_ids:
            head = f"{self._rule(_TEXT, terminal=True)} {self._literal(trigger)}"
        else:
            head = self._lazy(f"{_TEXT} {json.dumps(trigger)}")
        return self._rule(f"{head} ({' | '.join(rests)})")

    def _read_tags_with_separator(self, spec: dict[str, Any]) -> str:
        tag = "(" + " | ".join(self._read_tag(tag) for tag in _objects(spec, "tags")) + ")"
        if not spec.get("stop_after_first"):
            tag = f"({tag} ({self._literal(_string(spec, 'separator'))} {tag})*)"
        return self._rule(tag if spec.get("at_least_one") else f"{tag}?")

    # --- parts -----------------------------------------------------------------------------------

    def _tag(self, spec: dict[str, Any], begin: str) -> str:
        """`begin`: what of the beginning is still to come."""
        end, content = _string(spec, "end"), spec.get("content")
        is_text = isinstance(content, dict) and content.get("type") == "any_text"
        max_tokens = content.get("max_tokens") if isinstance(content, dict) and is_text else None
        if max_tokens is not None:
            body = f"{self._short_text(max_tokens, end)} {self._literal(end)}"
        elif is_text and end in self._special_ids:
            body = f"{self._rule(_TEXT, terminal=True)} {self._literal(end)}"
        elif is_text and end:
            body = self._lazy(f"{_TEXT} {json.dumps(end)}")
        else:
            body = f"{self._format(content)} {self._literal(end)}"
        return self._rule(f"{self._literal(begin)} {body}")

    def _short_text(self, max_tokens: object, end: str) -> str:
        """Text of so many tokens at most, before a special token."""
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 0:
            raise BadRequest("structural tag: max_tokens must be a number of tokens")
        if end not in self._special_ids:
            raise BadRequest("structural tag: max_tokens is only kept before a special token")
        name = f"short_{len(self._lines)}"
        self._lines.append(f"{name}[max_tokens={max_tokens}]: {_TEXT}")
        return name

    def _literal(self, text: str) -> str:
        """Spelled text, special tokens in it as such; "" if there is nothing to spell."""
        parts, at = [], 0
        for match in self._specials.finditer(text) if self._specials else ():
            parts += [json.dumps(text[at : match.start()])] if match.start() > at else []
            parts.append(f"<[{self._special_ids[match[0]]}]>")
            at = match.end()
        parts += [json.dumps(text[at:])] if at < len(text) else []
        return " ".join(parts)

    def _lazy(self, body: str) -> str:
        """A terminal that ends as soon as it can."""
        name = f"lazy_{len(self._lines)}"
        self._lines.append(f"{name}[lazy]: {body}")
        return name

    def _rule(self, body: str, *, terminal: bool = False) -> str:
        name = f"{'T' if terminal else 'r'}_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def _embed(self, grammar: dict[str, Any]) -> str:
        name = f"part_{len(self._grammars)}"
        self._grammars.append({"name": name, **grammar})
        return f"@{name}"


def _string(spec: dict[str, Any], name: str) -> str:
    value = spec.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"structural tag: {name} must be a string")
    return value


def _strings(spec: dict[str, Any], name: str) -> list[str]:
    values = spec.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise BadRequest(f"structural tag: {name} must be a list of strings")
    return values


def _objects(spec: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = spec.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(v, dict) for v in values):
        raise BadRequest(f"structural tag: {name} must be a list of objects")
    return values
