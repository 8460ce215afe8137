"""How models mark their reasoning, as a table, and which of the marks a model uses.

A model reasons at the start of its answer only. Some prompts end with the opening mark, so that the
answer begins inside of it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

TAIL_TOKENS = 24  # of a prompt: an opening mark at its end is within them


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    name: str
    opener: str
    closer: str
    aliases: tuple[str, ...] = ()  # names that vLLM's users know

    @property
    def marks(self) -> tuple[str, str]:
        return self.opener, self.closer

    def is_open(self, prompt: str) -> bool:
        """Does an answer to a prompt that ends like this begin in the middle of reasoning?"""
        return prompt.rstrip().endswith(self.opener)

    def is_closed(self, prompt: str) -> bool:
        """Does the prompt say that there will be no reasoning?"""
        return prompt.rstrip().endswith(self.closer)


_THINK = ("<think>", "</think>")

# The first format whose closing mark is in the template wins.
FORMATS: tuple[ReasoningFormat, ...] = (
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningFormat("kimi", "◁think▷", "◁/think▷"),
    ReasoningFormat("granite", "Here is my thought process:", "Here is my response:"),
    ReasoningFormat(
        "qwen3",
        *_THINK,
        aliases=("deepseek_r1", "deepseek_v3", "glm45", "ernie45", "nemotron", "think"),
    ),
)

BY_NAME = {name: each for each in FORMATS for name in (each.name, *each.aliases)}


def detect(template: str, tokens: Container[str]) -> ReasoningFormat | None:
    """The format of a model with this chat template and these tokens; None: it does not reason."""
    for each in FORMATS:
        if each.opener in template or each.closer in template:
            return each
    for each in FORMATS:
        if each.opener in tokens and each.closer in tokens:
            return each
    return None
