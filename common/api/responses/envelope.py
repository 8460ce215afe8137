"""The response object: what was asked and what came of it, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.api.generation import Usage
from common.api.responses.items import Item
from common.api.responses.protocol import ResponseRequest
from common.errors import XpydError

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What does not change while the response is made."""

    id: str
    created: int  # Unix seconds
    model: str
    ask: ResponseRequest
    defaults: Mapping[str, float]  # the model's, for what the client left open

    def body(
        self,
        status: ResponseStatus,
        output: list[Item],
        *,
        usage: dict[str, Any] | None = None,
        error: XpydError | None = None,
        completed: int | None = None,
    ) -> dict[str, Any]:
        ask = self.ask
        choice = ask.tool_choice
        is_cut = status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": completed,
            "status": status,
            "background": ask.background,
            "error": error and _error(error),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": ask.instructions,
            "max_output_tokens": ask.max_output_tokens,
            "max_tool_calls": ask.max_tool_calls,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": ask.parallel_tool_calls,
            "previous_response_id": ask.previous_response_id,
            "prompt_cache_key": ask.prompt_cache_key,
            "reasoning": {"effort": ask.reasoning.effort, "summary": ask.reasoning.summary},
            "safety_identifier": ask.safety_identifier,
            "service_tier": "default",
            "store": ask.store,
            "temperature": _first(ask.temperature, self.defaults.get("temperature")),
            "text": _text(ask),
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in ask.tools],
            "top_logprobs": ask.top_logprobs or 0,
            "top_p": _first(ask.top_p, self.defaults.get("top_p")),
            "truncation": ask.truncation,
            "usage": usage,
            "user": ask.user,
            "metadata": ask.metadata,
        }


def usage_body(usage: Usage, num_reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error(error: XpydError) -> dict[str, Any]:
    """OpenAI's list of codes here is a closed one."""
    return {"code": _ERROR_CODES.get(error.status, "server_error"), "message": error.message}


def _text(ask: ResponseRequest) -> dict[str, Any]:
    wanted = ask.text.format
    shown: dict[str, Any] = {"type": wanted.type}
    if wanted.type == "json_schema":
        shown |= {
            "name": wanted.name,
            "description": wanted.description,
            "schema": wanted.schema_,
            "strict": wanted.strict,
        }
    return {"format": shown, "verbosity": ask.text.verbosity or "medium"}


def _first(*values: float | None) -> float:
    return next((value for value in values if value is not None), 1.0)
