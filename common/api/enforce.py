"""What an answer is held to, from what the client wants of its calls and of its content.

Reasoning stays free: what is demanded of the answer is demanded behind it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from common.api.dialect import Dialect
from common.api.reasoning.formats import ReasoningFormat
from common.api.tools.choice import CallRules, Spec, call_format
from common.errors import BadRequest
from common.request import Constraint

_MAX_SPACE = 8  # characters of white space between reasoning and answer
_MAX_CHARS = 512 << 10


@dataclass(frozen=True, slots=True)
class Budget:
    """Reasoning ends after so many tokens, whatever the model would like to add."""

    num_tokens: int
    field: str  # the client's name for it


def enforced(
    rules: CallRules,
    dialect: Dialect,
    prompt_end: str,
    content: Constraint | None = None,
    budget: Budget | None = None,
) -> Constraint | None:
    """`content`: what an answer without calls must be. None: the model may say what it likes.

    Raises BadRequest naming the tools if there is too much to enforce, or the budget if the marks
    of reasoning are ordinary text.
    """
    wanted = None if content is None else _as_format(content)
    found = call_format(rules, dialect.calls, wanted)
    marks = dialect.reasoning
    if marks is None or marks.is_closed(prompt_end):
        budget = None  # nothing to spend it on
    if budget is not None and not dialect.marks_are_tokens:
        raise BadRequest(
            f"{budget.field}: this model has no tokens of their own for the marks of its "
            "reasoning, so no budget can be kept; leave it out",
            budget.field,
        )
    if found is None and budget is None:
        return None
    whole = _behind_reasoning(found, marks, prompt_end, budget)
    if whole is wanted:
        return content
    text = _dumped({"type": "structural_tag", "format": whole})
    if found is None and budget is not None:
        field = budget.field
    else:
        field = content.field if content and rules.mode == "none" else "tools"
    if len(text) > _MAX_CHARS:
        raise BadRequest("the schemas are too large to be enforced", field)
    return Constraint("structural_tag", text, field)


def _behind_reasoning(
    wanted: Spec | None, marks: ReasoningFormat | None, prompt_end: str, budget: Budget | None
) -> Spec:
    """`wanted`: None only with a budget, and then the answer is free."""
    if marks is None or marks.is_closed(prompt_end):
        assert wanted is not None
        return wanted
    is_open = marks.is_open(prompt_end)
    thoughts: Spec = {"type": "any_text"}
    if budget is not None:
        thoughts["max_tokens"] = budget.num_tokens
    reasoning = {
        "type": "tag",
        "begin": "" if is_open else marks.opener,
        "content": thoughts,
        "end": marks.closer,
    }
    space = {"type": "regex", "pattern": rf"\s{{0,{_MAX_SPACE}}}"}
    if wanted is None:
        whole: Spec = {"type": "sequence", "elements": [reasoning, {"type": "any_tokens"}]}
        wanted = {"type": "any_tokens", "excludes": [marks.opener]}
    else:
        whole = {"type": "sequence", "elements": [reasoning, space, wanted]}
    return whole if is_open else {"type": "or", "elements": [whole, wanted]}


def _dumped(tag: Spec) -> str:
    try:
        return json.dumps(tag)
    except RecursionError:
        raise BadRequest("a schema is nested too deeply", "tools") from None


def _as_format(constraint: Constraint) -> Spec:
    """A constraint as a part of a structural tag."""
    kind, text = constraint.kind, constraint.text
    if kind == "json_schema":
        return {"type": "json_schema", "json_schema": json.loads(text)}
    if kind == "json_object":
        return {"type": "json_schema", "json_schema": {"type": "object"}}
    if kind == "regex":
        return {"type": "regex", "pattern": text}
    if kind == "grammar":
        return {"type": "grammar", "grammar": text}
    if kind == "choice":
        choices = [{"type": "const_string", "value": each} for each in json.loads(text)]
        return {"type": "or", "elements": choices}
    return _of_structural_tag(json.loads(text))


def _of_structural_tag(tag: dict[str, Any]) -> Spec:
    if "format" in tag:
        found: Spec = tag["format"]
        return found
    tags = [
        {
            "type": "tag",
            "begin": each["begin"],
            "content": {"type": "json_schema", "json_schema": each.get("schema", {})},
            "end": each["end"],
        }
        for each in tag["structures"]
    ]
    return {"type": "triggered_tags", "tags": tags, "triggers": tag["triggers"]}
