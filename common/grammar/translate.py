"""A client's constraint as a grammar that llguidance compiles. Runs in the checking process only:
it may be slow or run out of memory there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from llguidance.gbnf_to_lark import any_to_lark

from common.errors import BadRequest
from common.grammar.json_schema import prepared, read_schema
from common.grammar.python_regex import regex_to_lark
from common.grammar.structural_tag import structural_tag_grammar

# Where only one text may follow, the model chooses among all tokens that begin it, not only the
# one that the tokenizer would: then a mask allows exactly what `validate_tokens` does. At the end,
# where it comes after what a client's grammar says.
_OPTIONS = '%llguidance {"no_forcing": true}'


def grammar_of(kind: str, text: str, special_ids: Mapping[str, int]) -> str:
    """`kind` and `text` as in `common.request.Constraint`. Raises BadRequest."""
    if kind == "json_schema":
        return _grammars(_json_to_lark(read_schema(text)))
    if kind == "json_object":
        return _grammars(_json_to_lark(prepared({"type": "object"})))
    if kind == "regex":
        return _grammars(regex_to_lark(text))
    if kind == "choice":
        return _grammars(_choices_to_lark(text))
    if kind == "grammar":
        return _grammars(_to_lark(text))
    if kind == "structural_tag":
        return _grammars(*structural_tag_grammar(text, special_ids, _to_lark))
    raise BadRequest(f"constraint of unknown kind {kind[:32]!r}")


def _grammars(first: str, named: Sequence[Mapping[str, object]] = ()) -> str:
    """What llguidance reads: Lark, and the grammars that it calls by name."""
    return json.dumps({"grammars": [{"lark_grammar": f"{first}\n{_OPTIONS}"}, *named]})


def _json_to_lark(schema: object) -> str:
    return f"start: %json {json.dumps(schema)}"


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
