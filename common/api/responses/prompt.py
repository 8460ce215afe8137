"""A conversation of items to the prompt's tokens, with what had to be left out of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from common.api.context import RequestInfo
from common.api.dialect import dialect_of
from common.api.errors import parse
from common.api.generation import Prompt, Service
from common.api.prompts import chat_prompt
from common.api.protocol import Message, TemplateFields
from common.api.reasoning.effort import effort_variables
from common.api.responses.calls import template_tools
from common.api.responses.items import MAX_ITEMS, Item
from common.api.responses.messages import messages_of
from common.api.responses.protocol import ConversationFields
from common.errors import BadRequest
from common.text import TextModel

_DEFAULT_ROOM = 8  # truncation leaves an 8th of the context for the answer if nothing else is said


async def prompt_of(
    ask: ConversationFields,
    conversation: list[Item],
    service: Service,
    text: TextModel,
    info: RequestInfo,
    max_prompt_len: int | None,
) -> Prompt:
    """`max_prompt_len`: with it, the oldest turns are left out until the prompt fits.
    Raises BadRequest."""
    if len(conversation) > MAX_ITEMS:
        raise BadRequest(f"input: a conversation may have at most {MAX_ITEMS} items", "input")
    messages = messages_of(conversation, ask.instructions)
    if not messages:
        raise BadRequest("input: is empty", "input")
    variables = _variables(ask, dialect_of(text, service.settings).template)
    tools = template_tools(ask)

    async def render(messages: list[Message]) -> Prompt:
        fields: dict[str, Any] = {"messages": messages}
        if tools:
            fields["tools"] = tools
        return await chat_prompt(
            parse(TemplateFields, fields | {"chat_template_kwargs": ask.chat_template_kwargs}),
            text,
            service.settings,
            info,
            add_special_tokens=False,
            variables=variables,
        )

    prompt = await render(messages)
    shorter = shortened(messages)
    if max_prompt_len is None or len(prompt.token_ids) <= max_prompt_len or not shorter:
        return prompt
    return await _first_that_fits(render, shorter, max_prompt_len)


async def _first_that_fits(
    render: Callable[[list[Message]], Awaitable[Prompt]],
    candidates: list[list[Message]],
    max_len: int,
) -> Prompt:
    """The candidates get shorter. If none fits, the last."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        prompt = await render(candidates[middle])
        if len(prompt.token_ids) <= max_len:
            high = middle
        else:
            low = middle + 1
    return await render(candidates[low])


def room_for_prompt(max_output_tokens: int | None, max_model_len: int) -> int:
    """How long a prompt may be under `truncation: auto`."""
    answer = max_output_tokens or max(1, max_model_len // _DEFAULT_ROOM)
    return max(1, max_model_len - answer)


def shortened(messages: list[Message]) -> list[list[Message]]:
    """The conversation without its oldest turns, then without more of them. What the system and
    the developer said at the start stays, and so does the last turn of the user."""
    start = 0
    while start < len(messages) and messages[start].role in ("system", "developer"):
        start += 1
    turns = [n for n in range(start + 1, len(messages)) if messages[n].role == "user"]
    return [messages[:start] + messages[n:] for n in turns]


def _variables(ask: ConversationFields, template: str) -> dict[str, Any]:
    variables = effort_variables(ask.reasoning.effort, template, ask.chat_template_kwargs)
    if ask.text.verbosity is not None:
        variables["verbosity"] = ask.text.verbosity
    return variables
