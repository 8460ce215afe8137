"""What clients may send, as types: names, kinds and ranges of every field. Meaning is elsewhere.

Strict: no number from a string, no integer from a bool or a float. `null` means absent. Unknown
fields are ignored here; those that would change the answer and cannot be honoured are refused in
refusals.py.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 1024
MAX_TOOLS = 128
MAX_TIMEOUT_S = 86_400

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Timeout = Annotated[
    float | None,
    Field(gt=0, le=MAX_TIMEOUT_S, description="seconds until the request ends with a 504"),
]
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UNUSED = "accepted, without effect"
_SALT = re.compile(r"[^@/\\\0]*")


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: entry for name, entry in value.items() if entry is not None}
        return value


def _stop_list(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are allowed")
    if not all(stops):
        raise ValueError("a stop string must not be empty")
    if any(len(stop) > MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"a stop string must not be longer than {MAX_STOP_CHARS} characters")
    return stops


def _bias(value: Any) -> Any:
    """JSON keys are strings, so token ids come as text: {"15496": -100}."""
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and biases")
    for key in value:
        if not isinstance(key, str) or not re.fullmatch(r"[0-9]{1,9}", key):
            raise ValueError("keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


def _salt(value: str) -> str:
    if not _SALT.fullmatch(value):
        raise ValueError("must not contain '@', '/', '\\' or NUL")
    return value


CacheSalt = Annotated[str, AfterValidator(_salt), Field(max_length=128)]


def _integer_flag(value: Any) -> Any:
    """completions take `logprobs: 3`; a client that means chat sends `true`."""
    if isinstance(value, bool):
        raise ValueError("must be an integer here")
    return value


ShortText = Annotated[str, Field(max_length=1024)]
PlugInValue = ShortText | int | float | bool
PlugInArguments = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        PlugInValue | Annotated[list[PlugInValue], Field(max_length=256)],
    ],
    Field(max_length=64),
]


class RepetitionDetection(Body):
    """End an answer whose last tokens are one pattern, `min_count` times in a row."""

    max_pattern_size: int = Field(0, ge=0, le=64, description="tokens; 0: off")
    min_pattern_size: int = Field(1, ge=0, le=64)
    min_count: int = Field(2, ge=2, le=1024)

    @model_validator(mode="after")
    def _sizes_in_order(self) -> RepetitionDetection:
        if self.max_pattern_size and self.min_pattern_size > self.max_pattern_size:
            raise ValueError("min_pattern_size must not be above max_pattern_size")
        return self


class SamplingFields(Body):
    """What chat, completions and generate have in common."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="0 or -1: off")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    n: int = Field(1, ge=1, le=128)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_bias)
    ] = Field(default={}, max_length=1024)
    stop: Annotated[list[str], BeforeValidator(_stop_list)] = Field(
        default=[], description="a string or up to 4; the answer ends before the first of them"
    )
    stop_token_ids: list[TokenId] = Field(default=[], max_length=1024)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, lt=1 << 31)
    bad_words: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default=[], max_length=256
    )
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, max_length=1 << 20)
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = Field(True, description=_UNUSED)
    truncate_prompt_tokens: int | None = Field(None, ge=-1, lt=1 << 31)
    truncation_side: Literal["left", "right"] = "left"
    prompt_logprobs: int | None = Field(None, ge=0)
    logprob_token_ids: list[TokenId] | None = Field(
        None, min_length=1, max_length=128, description="with logprobs: of these, not of the best"
    )
    structured_outputs: dict[str, Any] | None = Field(
        None, description="one of json, regex, choice, grammar, json_object, structural_tag"
    )
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    repetition_detection: RepetitionDetection | None = None
    vllm_xargs: PlugInArguments | None = Field(None, description=_UNUSED)


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = Field(False, description=_UNUSED)


class OpenAIFields(SamplingFields):
    """What chat and completions have in common beyond sampling."""

    model: str | None = Field(None, max_length=512)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    return_prompt_text: bool = False
    stream_interval: int = Field(1, ge=1, le=4096, description="tokens per event after the first")
    add_special_tokens: bool | None = None
    priority: int | None = Field(None, ge=-(1 << 31), lt=1 << 31, description="lower runs first")
    timeout_s: Timeout = None
    cache_salt: Annotated[str, AfterValidator(_salt)] = Field("", max_length=128)
    request_id: str = Field("", max_length=256, description="a label for logs")
    session_id: str = Field("", max_length=256, description="a label for logs and routing")
    user: str = Field("", description=_UNUSED)
    response_format: dict[str, Any] | None = Field(
        None, description="text, json_object, json_schema or structural_tag"
    )
    metadata: Any = Field(None, description=_UNUSED)
    store: Any = Field(None, description=_UNUSED)
    service_tier: Any = Field(None, description=_UNUSED)
    prompt_cache_key: Any = Field(None, description=_UNUSED)
    prompt_cache_options: Any = Field(None, description=_UNUSED)
    prompt_cache_retention: Any = Field(None, description=_UNUSED)
    safety_identifier: Any = Field(None, description=_UNUSED)

    @model_validator(mode="after")
    def _options_need_stream(self) -> OpenAIFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self


class FunctionCall(Body):
    name: str
    arguments: str = "{}"

    def parsed_arguments(self) -> Any:
        """As an object if it is one: templates write it as JSON themselves."""
        try:
            value = json.loads(self.arguments or "{}")
        except ValueError:
            return self.arguments
        return value if isinstance(value, dict) else self.arguments


class ToolCall(Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


def _content_text(value: Any) -> str:
    """A string, or the texts of a list of parts. Other kinds of parts are named in the error."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content parts")
    texts = []
    for n, part in enumerate(value):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise ValueError(
                f"part {n}: only text is supported by this model, not {str(kind)[:32]}"
            )
        texts.append(text)
    return "\n".join(texts)


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_content_text)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self


def _tool(value: Any) -> Any:
    """Checked for form, then given to the chat template as it came."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        raise ValueError("only tools of type 'function' are supported")
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("needs function.name")
    if not _TOOL_NAME.fullmatch(function["name"]):
        raise ValueError("function.name may have letters, digits, '_', '-' and '.', at most 64")
    if not isinstance(function.get("parameters") or {}, dict):
        raise ValueError("function.parameters must be a JSON schema object")
    return value


Tool = Annotated[dict[str, Any], BeforeValidator(_tool)]


def _tool_choice(value: Any) -> Any:
    """Checked for form; which tools it names is looked at with the tools."""
    if value in ("none", "auto", "required") or _names_function(value):
        return value
    chosen = value.get("allowed_tools") if isinstance(value, dict) else None
    if (
        isinstance(chosen, dict)
        and value.get("type") == "allowed_tools"
        and chosen.get("mode") in ("auto", "required")
        and isinstance(tools := chosen.get("tools"), list)
        and tools
        and all(map(_names_function, tools))
    ):
        return value
    raise ValueError(
        'must be "none", "auto", "required", {"type": "function", "function": {"name": …}} '
        "or OpenAI's allowed_tools"
    )


def _names_function(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type") != "function":
        return False
    function = value.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


ToolChoice = Annotated[Any, BeforeValidator(_tool_choice)]


class TemplateFields(Body):
    """How a conversation becomes a prompt."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    tools: list[Tool] | None = Field(None, min_length=1, max_length=MAX_TOOLS)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    documents: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _one_ending(self) -> TemplateFields:
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "continue_final_message and add_generation_prompt exclude each other; "
                "set add_generation_prompt: false"
            )
        return self


class ChatRequest(OpenAIFields, TemplateFields):
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    tool_choice: ToolChoice = Field(
        None, description="none, auto, required, a named function, or allowed_tools"
    )
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    thinking_token_budget: int | None = Field(None, ge=0, lt=1 << 31)
    echo: bool = Field(False, description="begin the answer with the last assistant message")
    verbosity: Any = Field(None, description=_UNUSED)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )

    @model_validator(mode="after")
    def _pairs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed with logprobs: true")
        return self

    @property
    def num_top(self) -> int:
        """Log-probabilities shown beside each token's own."""
        return len(self.logprob_token_ids or ()) or self.top_logprobs or 0


class CompletionRequest(OpenAIFields):
    prompt: Any = Field(description="string, list of strings, token ids, or list of token id lists")
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    best_of: int | None = Field(None, ge=1, le=128)
    echo: bool = Field(False, description="begin the answer with the prompt")
    logprobs: Annotated[int | None, BeforeValidator(_integer_flag)] = Field(None, ge=0)

    @property
    def num_top(self) -> int:
        """Log-probabilities shown beside each token's own."""
        return len(self.logprob_token_ids or ()) or self.logprobs or 0


class GenerateSampling(SamplingFields):
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    logprobs: Annotated[int | None, BeforeValidator(_integer_flag)] = Field(None, ge=0)


class GenerateRequest(Body):
    token_ids: list[TokenId] = Field(min_length=1)
    sampling_params: GenerateSampling = Field(
        default_factory=lambda: GenerateSampling.model_validate({})
    )
    model: str | None = Field(None, max_length=512)
    request_id: str = Field("", max_length=256, description="for abort_requests and logs")
    output_mode: Literal["tokens", "text"] = "tokens"
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = Field(True, description="accepted: they always come")
    priority: int | None = Field(None, ge=-(1 << 31), lt=1 << 31, description="lower runs first")
    timeout_s: Timeout = None
    cache_salt: Annotated[str, AfterValidator(_salt)] = Field("", max_length=128)


class AbortRequest(Body):
    request_ids: list[str] = Field(max_length=4096)


class TokenizePrompt(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(TemplateFields):
    model: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[TokenId] = Field(max_length=1 << 20)
