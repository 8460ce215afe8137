"""Which functions the model is offered, and which of them it may or must call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common.api.responses.protocol import AllowedTools, ConversationFields, FunctionName
from common.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Offer:
    tools: list[dict[str, Any]]  # as chat templates know them
    mode: Literal["none", "auto", "required"] = "none"
    name: str | None = None  # the function that must be called
    max_calls: int | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool["function"]["name"] for tool in self.tools)


def offer_of(ask: ConversationFields, max_tool_calls: int | None = None) -> Offer:
    """Raises BadRequest if the choice names a function that is not there."""
    choice = ask.tool_choice
    if not ask.tools:
        if choice not in ("none", "auto"):
            raise BadRequest("tool_choice is only allowed with tools", "tool_choice")
        return Offer([])
    max_calls = max_tool_calls if ask.parallel_tool_calls else 1
    by_name = {tool.name: tool.as_chat() for tool in ask.tools}
    if isinstance(choice, AllowedTools):
        names = [_known(tool.name, by_name) for tool in choice.tools]
        return Offer([by_name[name] for name in names], choice.mode, None, max_calls)
    if isinstance(choice, FunctionName):
        return Offer(list(by_name.values()), "required", _known(choice.name, by_name), 1)
    return Offer(list(by_name.values()), choice, None, max_calls)


def _known(name: str, by_name: dict[str, dict[str, Any]]) -> str:
    if name not in by_name:
        raise BadRequest(f"tool_choice: there is no tool {name[:64]!r}", "tool_choice")
    return name
