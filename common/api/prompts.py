"""From what the client wrote to prompt tokens: templates, encoding, truncation.

Big requests are worked on in a thread, so that they do not hold up everybody's streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from common.api.context import RequestInfo
from common.api.generation import Prompt
from common.api.protocol import CompletionRequest, Message, SamplingFields, TemplateFields
from common.api.sampling import check_token_ids
from common.api.settings import ApiSettings
from common.api.tools.history import shown_id, takes_text_arguments
from common.chat_template import ChatTemplate, TemplateRefused
from common.errors import BadRequest, ContextLengthExceeded
from common.text import TextModel

T = TypeVar("T")

MAX_PROMPTS = 1024
_INLINE_BYTES = 16 << 10  # a body of this size takes a few milliseconds


async def chat_prompt(
    ask: TemplateFields,
    text: TextModel,
    settings: ApiSettings,
    info: RequestInfo,
    *,
    add_special_tokens: bool,
    variables: dict[str, Any] | None = None,
) -> Prompt:
    """Render the conversation and encode it. Raises BadRequest."""
    template = _template(ask, text, settings)

    def work() -> Prompt:
        rendered = template.render(
            [_as_template_sees(message, template) for message in ask.messages],
            tools=ask.tools,
            documents=ask.documents,
            add_generation_prompt=ask.add_generation_prompt,
            continue_final_message=ask.continue_final_message,
            variables={**ask.chat_template_kwargs, **(variables or {})},
        )
        ids = text.encode(rendered, add_special_tokens=add_special_tokens)
        return Prompt(tuple(ids), rendered)

    return await _run(work, info, is_trusted=ask.chat_template is None)


def _template(ask: TemplateFields, text: TextModel, settings: ApiSettings) -> ChatTemplate:
    if ask.chat_template is None:
        return text.chat_template(with_tools=ask.tools is not None)
    if not settings.allow_chat_template:
        raise BadRequest("this server does not take templates from clients", "chat_template")
    try:
        return ChatTemplate(ask.chat_template, text.special_tokens)
    except TemplateRefused as error:
        raise BadRequest(f"the template {error}", "chat_template") from None


def _as_template_sees(message: Message, template: ChatTemplate) -> dict[str, Any]:
    """Hugging Face's form of a message: only what is there, arguments as the template takes them.

    Few templates know OpenAI's "developer"; to the others it is the system.
    """
    is_foreign = message.role == "developer" and "developer" not in template.source
    seen: dict[str, Any] = {
        "role": "system" if is_foreign else message.role,
        "content": message.content or "",
    }
    if message.name is not None:
        seen["name"] = message.name
    if message.tool_call_id is not None:
        seen["tool_call_id"] = shown_id(template, message.tool_call_id)
    if reasoning := message.reasoning or message.reasoning_content:
        seen["reasoning"] = seen["reasoning_content"] = reasoning
    if message.tool_calls:
        seen["tool_calls"] = [
            {
                "id": shown_id(template, call.id),
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": call.function.arguments
                    if takes_text_arguments(template)
                    else call.function.parsed_arguments(),
                },
            }
            for call in message.tool_calls
        ]
    return seen


async def completion_prompts(
    ask: CompletionRequest, text: TextModel, info: RequestInfo
) -> list[Prompt]:
    """The prompts of /v1/completions in all four spellings. Raises BadRequest."""
    add_special_tokens = ask.add_special_tokens is not False
    return await encode_prompts(
        ask.prompt, "prompt", text, info, add_special_tokens=add_special_tokens
    )


async def encode_prompts(
    value: Any, name: str, text: TextModel, info: RequestInfo, *, add_special_tokens: bool
) -> list[Prompt]:
    """A text, token ids, or several of either, from the field `name`. Raises BadRequest."""
    given = _prompt_list(value, name)

    def work() -> list[Prompt]:
        return [
            Prompt(tuple(text.encode(each, add_special_tokens=add_special_tokens)), each)
            if isinstance(each, str)
            else Prompt(tuple(each))
            for each in given
        ]

    for each in given:
        if not isinstance(each, str):
            check_token_ids(each, name, text)
    return await _run(work, info)


async def encode_pairs(
    pairs: list[tuple[str, str]], text: TextModel, info: RequestInfo
) -> list[Prompt]:
    """Two texts as one prompt, with what the tokenizer puts between them."""

    def work() -> list[Prompt]:
        return [Prompt(tuple(text.encode_pair(first, second))) for first, second in pairs]

    return await _run(work, info)


async def encode_prompt(
    prompt: str, text: TextModel, info: RequestInfo, *, add_special_tokens: bool
) -> Prompt:
    def work() -> Prompt:
        return Prompt(tuple(text.encode(prompt, add_special_tokens=add_special_tokens)), prompt)

    return await _run(work, info)


def _prompt_list(prompt: Any, name: str) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(map(_is_token, prompt)):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise BadRequest(f"at most {MAX_PROMPTS} prompts are allowed", name)
        if all(isinstance(each, str) for each in prompt):
            return prompt
        if all(isinstance(each, list) and all(map(_is_token, each)) for each in prompt):
            return prompt
    raise BadRequest(
        f"{name} must be a string, a list of strings, a list of token ids "
        "or a list of token id lists, and not empty",
        name,
    )


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def truncate(prompt: Prompt, fields: SamplingFields, max_model_len: int) -> Prompt:
    """`truncate_prompt_tokens`: keep so many tokens, the last ones by default; -1: what fits."""
    keep = fields.truncate_prompt_tokens
    if keep is None:
        return prompt
    if keep > max_model_len:
        raise ContextLengthExceeded(
            f"truncate_prompt_tokens is {keep}, but this model's maximum context length is "
            f"{max_model_len} tokens",
            "truncate_prompt_tokens",
        )
    if keep == 0:
        raise BadRequest("truncate_prompt_tokens must not be 0", "truncate_prompt_tokens")
    keep = max_model_len - 1 if keep == -1 else keep
    if len(prompt.token_ids) <= keep:
        return prompt
    is_left = fields.truncation_side == "left"
    return Prompt(prompt.token_ids[-keep:] if is_left else prompt.token_ids[:keep])


async def _run(work: Callable[[], T], info: RequestInfo, *, is_trusted: bool = True) -> T:
    is_small = info.body_bytes <= _INLINE_BYTES
    return work() if is_small and is_trusted else await asyncio.to_thread(work)
