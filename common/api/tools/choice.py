"""What a client's `tool_choice` asks for, and the constraint that makes the model keep to it.

The constraint is a structural tag: it spells calls as the model's own format does, so that the same
parser reads them, and holds their arguments to the tools' schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.api.tools.formats import ToolFormat
from common.errors import BadRequest

Tool = dict[str, Any]
Spec = dict[str, Any]  # a part of a structural tag


@dataclass(frozen=True, slots=True)
class CallRules:
    """`offered`: tools that the model is shown; `allowed`: those that it may call."""

    offered: tuple[Tool, ...] = ()
    allowed: tuple[Tool, ...] = ()
    mode: Literal["none", "auto", "required"] = "none"
    max_calls: int | None = None
    is_named: bool = False  # one function is demanded

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name_of(tool) for tool in self.offered)

    def finish_reason(self, reason: str | None, num_calls: int) -> str | None:
        """As chat completions say it: a call that was demanded by name is no news."""
        if reason != "stop" or not num_calls or self.is_named:
            return reason
        return "tool_calls"


def call_rules(
    tools: Sequence[Tool] | None, choice: Any, *, parallel: bool, reads_auto: bool = True
) -> CallRules:
    """`choice`: "none", "auto", "required", a named function, or OpenAI's `allowed_tools`; None
    is auto. Raises BadRequest naming tool_choice."""
    if not tools:
        return CallRules()
    offered = tuple(tools)
    max_calls = None if parallel else 1
    if choice is None or isinstance(choice, str):
        mode: Literal["none", "auto", "required"] = choice or "auto"  # type: ignore[assignment]
        if mode == "auto" and not reads_auto:
            return CallRules(offered)
        return CallRules(offered, offered, mode, max_calls)
    if choice["type"] == "function":
        name = choice["function"]["name"]
        return CallRules(offered, (_known(name, offered),), "required", 1, is_named=True)
    allowed = choice["allowed_tools"]
    chosen = tuple(_known(tool["function"]["name"], offered) for tool in allowed["tools"])
    return CallRules(offered, chosen, allowed["mode"], max_calls)


def name_of(tool: Tool) -> str:
    name: str = tool["function"]["name"]
    return name


def _known(name: str, tools: Sequence[Tool]) -> Tool:
    for tool in tools:
        if name_of(tool) == name:
            return tool
    raise BadRequest(f"tool_choice: there is no tool {name[:64]!r} in tools", "tool_choice")


# --- the constraint -------------------------------------------------------------------------------


def call_format(rules: CallRules, format_: ToolFormat, content: Spec | None = None) -> Spec | None:
    """What the answer must look like behind any reasoning; None: as the model likes.

    `content`: what the client wants an answer without calls to look like.
    """
    if rules.mode == "required":
        return _calls(rules, format_)
    if rules.mode == "none" or not rules.allowed:
        return content
    if content is not None:
        return {"type": "or", "elements": [content, _calls(rules, format_)]}
    is_subset = len(rules.allowed) < len(rules.offered)
    if is_subset or any(_is_strict(tool) for tool in rules.allowed):
        return _text_or_calls(rules, format_)
    return None


def _calls(rules: CallRules, format_: ToolFormat) -> Spec:
    """Nothing but calls, one at least."""
    shape = format_.shape
    calls: Spec = {
        "type": "tags_with_separator",
        "tags": [_tag(tool, format_) for tool in rules.allowed],
        "separator": shape.separator,
        "at_least_one": True,
        "stop_after_first": rules.max_calls == 1,
    }
    if not shape.head and not shape.tail:
        return calls
    return {"type": "tag", "begin": shape.head, "content": calls, "end": shape.tail}


def _text_or_calls(rules: CallRules, format_: ToolFormat) -> Spec | None:
    """Text; wherever calls begin in it, they are calls of what is allowed.

    Where no mark begins them, nothing tells an answer in JSON from a call before its end: there the
    model stays free.
    """
    if not format_.begins_with_mark:
        return None
    calls = _calls(rules, format_)
    tags: list[Spec] = [calls] if calls["type"] == "tag" else calls["tags"]
    mark = next(each for each in format_.marks if tags[0]["begin"].startswith(each))
    return {
        "type": "triggered_tags",
        "triggers": [mark],
        "tags": tags,
        "at_least_one": False,
        "stop_after_first": False,
    }


def _tag(tool: Tool, format_: ToolFormat) -> Spec:
    """One call. Its arguments are an object, whatever the schema forgets to say."""
    shape = format_.shape
    schema = tool["function"].get("parameters") or {}
    return {
        "type": "tag",
        "begin": f"{shape.before}{name_of(tool)}{shape.between}",
        "content": {"type": "json_schema", "json_schema": {"type": "object", **schema}},
        "end": shape.after,
    }


def _is_strict(tool: Tool) -> bool:
    return tool["function"].get("strict") is True or tool.get("strict") is True
