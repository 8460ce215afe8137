"""The functions that a response offers, and `tool_choice`, in the words of chat completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common.api.responses.protocol import AllowedTools, ConversationFields, FunctionName
from common.api.tools.choice import CallRules, call_rules
from common.errors import BadRequest


def template_tools(ask: ConversationFields) -> list[dict[str, Any]]:
    """As chat templates know them."""
    return [tool.as_chat() for tool in ask.tools]


def rules_of(ask: ConversationFields, max_tool_calls: int | None = None) -> CallRules:
    """Raises BadRequest if the choice names a function that is not there."""
    if not ask.tools and ask.tool_choice not in ("none", "auto"):
        raise BadRequest("tool_choice is only allowed with tools", "tool_choice")
    tools = [{**tool.as_chat(), "strict": tool.strict} for tool in ask.tools]
    rules = call_rules(tools, _choice(ask.tool_choice), parallel=ask.parallel_tool_calls)
    if max_tool_calls is None or (rules.max_calls or max_tool_calls) < max_tool_calls:
        return rules
    return replace(rules, max_calls=max_tool_calls)


def _choice(choice: Any) -> Any:
    if isinstance(choice, FunctionName):
        return _named(choice)
    if isinstance(choice, AllowedTools):
        tools = [_named(tool) for tool in choice.tools]
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": choice.mode, "tools": tools},
        }
    return choice


def _named(choice: FunctionName) -> dict[str, Any]:
    return {"type": "function", "function": {"name": choice.name}}
