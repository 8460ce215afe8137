"""What clients may send to /v1/responses: names, kinds and ranges. Input items are in items.py."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from common.api.protocol import MAX_TOOLS, Body, CacheSalt, SamplingFields, Timeout

LOGPROBS = "message.output_text.logprobs"
# The others speak of what never occurs here (hosted tools, images), or of what is never hidden.
_INCLUDABLE = frozenset(
    {
        LOGPROBS,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _only_functions(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != "function":
        raise ValueError(f"only tools of type 'function' are supported, not {str(kind)[:64]!r}")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("may have letters, digits, '_', '-' and '.', at most 64")
    return value


class _Function(Body):
    type: Literal["function"]
    name: Annotated[str, AfterValidator(_name)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = True

    def as_chat(self) -> dict[str, Any]:
        """As chat templates know it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


Function = Annotated[_Function, BeforeValidator(_only_functions)]


class FunctionName(Body):
    type: Literal["function"]
    name: str


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[FunctionName, BeforeValidator(_only_functions)]] = Field(min_length=1)


def _choice(value: Any) -> Any:
    """A word, one function, or a selection of them. Hosted tools are named in the error."""
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise ValueError("must be 'none', 'auto', 'required' or an object")
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return FunctionName.model_validate(value)
    if kind == "allowed_tools":
        return AllowedTools.model_validate(value)
    raise ValueError(f"a choice of type {str(kind)[:64]!r} is not supported")


class Reasoning(Body):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, AfterValidator(_name)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("json_schema needs a name and a schema")
        return self


class Text(Body):
    format: TextFormat = Field(default_factory=lambda: TextFormat.model_validate({}))
    verbosity: Literal["low", "medium", "high"] | None = None


class ConversationFields(Body):
    """All that decides about the prompt: what creating a response and counting its tokens share."""

    model: str | None = Field(None, max_length=512)
    input: Any = Field(None, description="a string, or a list of items")
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=128)
    tools: list[Function] = Field(default=[], max_length=MAX_TOOLS)
    tool_choice: Annotated[Any, BeforeValidator(_choice)] = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Field(default_factory=lambda: Reasoning.model_validate({}))
    text: Text = Field(default_factory=lambda: Text.model_validate({}))
    truncation: Literal["auto", "disabled"] = "disabled"
    chat_template_kwargs: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_input(self) -> ConversationFields:
        if self.input is None and self.previous_response_id is None:
            raise ValueError("input is missing")
        return self


class TokenCountRequest(ConversationFields):
    pass


class StreamOptions(Body):
    include_obfuscation: bool = Field(True, description="accepted, without effect")


class ResponseRequest(ConversationFields, SamplingFields):
    max_output_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    max_tool_calls: int | None = Field(None, ge=1, lt=1 << 31)
    include: list[str] = Field(default=[], max_length=64)
    top_logprobs: int | None = Field(None, ge=0)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = (
        Field(default={}, max_length=16)
    )
    store: bool = True
    background: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = Field(0, ge=-(1 << 31), lt=1 << 31)
    timeout_s: Timeout = None
    cache_salt: CacheSalt = ""
    request_id: str = Field("", max_length=256, description="a label for logs")
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def shows_logprobs(self) -> bool:
        return LOGPROBS in self.include

    @property
    def response_format(self) -> dict[str, Any]:
        """`text.format` in the words of chat completions."""
        wanted = self.text.format
        return {"type": wanted.type, "json_schema": {"schema": wanted.schema_}}

    @model_validator(mode="after")
    def _pairs(self) -> ResponseRequest:
        if unknown := sorted(set(self.include) - _INCLUDABLE):
            raise ValueError(f"include: {unknown[0][:64]!r} is not known")
        if self.top_logprobs and not self.shows_logprobs:
            raise ValueError(f"top_logprobs is only allowed with include: [{LOGPROBS!r}]")
        if self.background and not self.store:
            raise ValueError("background is only allowed with store: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self
