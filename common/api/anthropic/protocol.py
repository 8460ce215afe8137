"""What clients may send to /v1/messages, as types. What blocks mean is in conversation.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.api.protocol import MAX_STOP_CHARS, MAX_TOOLS, Body

MAX_STOP_SEQUENCES = 16
_UNUSED = "accepted, without effect"

Blocks = list[dict[str, Any]]


class InputMessage(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class Tool(Body):
    """A function of the client's. Tools that Anthropic runs itself are refused by their type."""

    type: str = "custom"
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool = False

    @model_validator(mode="after")
    def _is_ours_to_offer(self) -> Tool:
        if self.type != "custom":
            raise ValueError(
                f"tools of type {self.type[:64]!r} are not supported, only custom ones"
            )
        if self.input_schema is None:
            raise ValueError("input_schema is missing")
        return self

    def as_chat(self) -> dict[str, Any]:
        """As chat templates know it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.input_schema
        if self.strict:
            function["strict"] = True
        return {"type": "function", "function": function}


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _names_its_tool(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("name belongs to type 'tool', and only to it")
        return self


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, lt=1 << 31)

    @model_validator(mode="after")
    def _has_its_budget(self) -> Thinking:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise ValueError("budget_tokens belongs to type 'enabled', and only to it")
        return self


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class CountTokensRequest(Body):
    """All that makes up the prompt."""

    model: str | None = Field(None, max_length=512)
    messages: list[InputMessage] = Field(min_length=1, max_length=4096)
    system: str | Blocks | None = None
    tools: list[Tool] = Field(default=[], max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = Field(default_factory=lambda: OutputConfig.model_validate({}))

    @model_validator(mode="after")
    def _choice_is_offered(self) -> CountTokensRequest:
        choice = self.tool_choice
        if choice is None or choice.type == "none":
            return self
        if not self.tools:
            raise ValueError("tool_choice is only allowed with tools")
        if choice.type == "tool" and choice.name not in {tool.name for tool in self.tools}:
            raise ValueError(f"tool_choice: there is no tool {str(choice.name)[:64]!r}")
        return self


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1, lt=1 << 31)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]] = Field(
        default=[], max_length=MAX_STOP_SEQUENCES
    )
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="0 or -1: off")
    metadata: Any = Field(None, description=_UNUSED)
    service_tier: Any = Field(None, description=_UNUSED)
    cache_control: Any = Field(None, description=_UNUSED)

    @model_validator(mode="after")
    def _budget_is_within(self) -> MessagesRequest:
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is not None and budget >= self.max_tokens:
            raise ValueError("thinking.budget_tokens must be below max_tokens")
        return self
