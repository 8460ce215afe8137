"""OpenAI's older spelling of tools: `functions`, `function_call`, messages of role "function"."""

from __future__ import annotations

from typing import Any

from common.errors import BadRequest

_OLD = ("functions", "function_call")


def modernized(body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The body in today's words, and whether the answer is wanted in the old ones.

    What is malformed is passed on as it is, for whoever checks fields. Raises BadRequest if old and
    new are mixed.
    """
    body = _with_modern_messages(body)
    functions, call = (body.get(name) for name in _OLD)
    if functions is None and call is None:
        return body, False
    if body.get("tools") is not None or body.get("tool_choice") is not None:
        raise BadRequest("functions and tools exclude each other", "functions")
    if functions is None and call != "none":
        raise BadRequest("function_call is only allowed with functions", "function_call")
    modern = {name: value for name, value in body.items() if name not in _OLD}
    if isinstance(functions, list) and functions:
        modern["tools"] = [{"type": "function", "function": each} for each in functions]
        modern["parallel_tool_calls"] = False
        if call is not None:
            modern["tool_choice"] = _choice(call)
    return modern, True


def _choice(call: Any) -> Any:
    if isinstance(call, str):
        if call not in ("none", "auto"):
            raise BadRequest("function_call must be none, auto or {name}", "function_call")
        return call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRequest("function_call must be none, auto or {name}", "function_call")
    return {"type": "function", "function": {"name": call["name"]}}


def _with_modern_messages(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not any(map(_is_old, messages)):
        return body
    return {**body, "messages": [_modern_message(message) for message in messages]}


def _is_old(message: Any) -> bool:
    return isinstance(message, dict) and (
        message.get("role") == "function" or isinstance(message.get("function_call"), dict)
    )


def _modern_message(message: Any) -> Any:
    """A function had one call at a time: its name stands for the call's id."""
    if not _is_old(message):
        return message
    modern = {name: value for name, value in message.items() if name != "function_call"}
    if message.get("role") == "function":
        modern |= {"role": "tool", "tool_call_id": message.get("name")}
    elif message.get("tool_calls") is None:
        call = message["function_call"]
        modern["tool_calls"] = [{"id": call.get("name"), "type": "function", "function": call}]
    return modern


def old_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message, or a delta of one, with its call in the old words."""
    if not message.get("tool_calls"):
        return message
    old = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**old, "function_call": message["tool_calls"][0]["function"]}
