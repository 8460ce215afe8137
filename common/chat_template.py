"""Chat templates: Jinja in a sandbox, with the helpers that Hugging Face gives them.

Templates come with models, so they are not trusted: they run in common/template_sandbox.py, under a
deadline and a bound on what they build. Knows nothing of tokens.
"""

from __future__ import annotations

from typing import Any

import jinja2

from common.errors import BadRequest
from common.template_sandbox import Raised, TemplateRefused, compile_template, run_template

__all__ = ["ChatTemplate", "TemplateRefused"]

DEADLINE_S = 5.0
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_CONTINUE_HERE = "\ue000continue\ue001"  # private use: stands for the end of the final message

_CANNOT_RENDER = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        """`special_tokens`: bos_token, eos_token … by name. Raises TemplateRefused."""
        self.source = source
        self._special_tokens = special_tokens or {}
        self._template = compile_template(source)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> str:
        """The prompt's text. Raises BadRequest if the template refuses the conversation."""
        variables = variables or {}
        if taken := sorted(_RESERVED & variables.keys()):
            raise BadRequest(f"{taken[0]!r} cannot be set here", "chat_template_kwargs")
        if continue_final_message:
            messages = [*messages[:-1], _marked(messages[-1])]
        text = self._render(
            {
                **self._special_tokens,
                **variables,
                "messages": messages,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            },
            deadline_s,
        )
        return _cut(text) if continue_final_message else text

    def probe(self, deadline_s: float = DEADLINE_S) -> None:
        """Raise TemplateRefused if the template runs away on the smallest conversation."""
        try:
            self.render([{"role": "user", "content": "Hi"}], deadline_s=deadline_s)
        except BadRequest as error:
            if isinstance(error.__cause__, TemplateRefused):
                raise error.__cause__ from None

    def _render(self, variables: dict[str, Any], deadline_s: float) -> str:
        try:
            return run_template(self._template, variables, deadline_s)
        except TemplateRefused as error:
            raise BadRequest(f"the chat template {error}", "messages") from error
        except Raised as error:
            raise BadRequest(f"the chat template refuses this: {error}", "messages") from None
        except _CANNOT_RENDER as error:
            raise BadRequest(f"the chat template cannot render this: {error}", "messages") from None


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        raise BadRequest("the final message has no text to continue", "continue_final_message")
    return {**message, "content": content + _CONTINUE_HERE}


def _cut(text: str) -> str:
    end = text.rfind(_CONTINUE_HERE)
    if end < 0:
        raise BadRequest("the template drops the final message", "continue_final_message")
    return text[:end]
