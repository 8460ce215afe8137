"""A client's constraint as a grammar that llguidance compiles. Runs in the checking process only:
it may be slow or run out of memory there."""

from __future__ import annotations

import json
from collections.abc import Mapping

from llguidance.gbnf_to_lark import any_to_lark

from common.errors import BadRequest
from common.grammar.json_schema import prepared, read_schema
from common.grammar.python_regex import regex_to_lark
from common.grammar.structural_tag import structural_tag_grammar


def grammar_of(kind: str, text: str, special_ids: Mapping[str, int]) -> str:
    """`kind` and `text` as in `common.request.Constraint`. Raises BadRequest."""
    if kind == "json_schema":
        return _grammar("json_schema", read_schema(text))
    if kind == "json_object":
        return _grammar("json_schema", prepared({"type": "object"}))
    if kind == "regex":
        return _grammar("lark_grammar", regex_to_lark(text))
    if kind == "choice":
        return _grammar("lark_grammar", _choices_to_lark(text))
    if kind == "grammar":
        return _grammar("lark_grammar", _to_lark(text))
    if kind == "structural_tag":
        return structural_tag_grammar(text, special_ids, _to_lark)
    raise BadRequest(f"constraint of unknown kind {kind[:32]!r}")


def _grammar(name: str, value: object) -> str:
    return json.dumps({"grammars": [{name: value}]})


def _choices_to_lark(text: str) -> str:
    spelled = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(text)]
    return "start: CHOICE\nCHOICE: " + " | ".join(spelled)


def _to_lark(text: str) -> str:
    """Lark as it is; GBNF (also called EBNF), which names rules with `::=`, converted."""
    try:
        converted: str = any_to_lark(text)
    except Exception as error:  # the converter raises what comes up
        raise BadRequest(f"the grammar cannot be read: {error}") from None
    return converted
