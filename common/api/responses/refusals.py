"""Fields of /v1/responses that we cannot honour: a 400 that names them, as everywhere."""

from __future__ import annotations

from typing import Any

from common.api.refusals import GENERATE, Harmless, refuse
from common.errors import BadRequest

# Other endpoints' words for what has another name here.
_MISPLACED = {
    "functions": "tools",
    "function_call": "tool_choice",
    "json_schema": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "truncate_prompt_tokens": "truncation",
    "verbosity": "text.verbosity",
}


def _never(value: Any) -> bool:
    return False


def _is_empty(value: Any) -> bool:
    return value in (False, "", [], {})


_TABLE: dict[str, Harmless] = {
    **GENERATE,
    "best_of": lambda value: value == 1,
    "context_management": _is_empty,
    "conversation": _never,
    "echo": _is_empty,
    "logprobs": _is_empty,
    "moderation": _never,
    "n": lambda value: value == 1,
    "prompt": _never,
    "prompt_logprobs": _never,
    "web_search_options": _never,
}


def refuse_unsupported(body: dict[str, Any]) -> None:
    """Raises BadRequest for the first field that cannot be honoured."""
    for name, ours in _MISPLACED.items():
        if name in body:
            raise BadRequest(f"{name} is not a parameter of responses; use {ours}", name)
    refuse(body, _TABLE)
