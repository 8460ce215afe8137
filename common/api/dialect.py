"""How one model writes its calls and its reasoning: told by its template, or by the operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.api.message import MessageReader
from common.api.reasoning import formats as reasoning_formats
from common.api.reasoning.formats import TAIL_TOKENS, ReasoningFormat
from common.api.reasoning.parser import ReasoningParser
from common.api.settings import ApiSettings
from common.api.tools import formats as tool_formats
from common.api.tools.formats import ToolFormat
from common.errors import BadRequest
from common.text import TextModel


@dataclass(frozen=True, slots=True)
class Dialect:
    calls: ToolFormat
    reasoning: ReasoningFormat | None
    special_marks: frozenset[int]  # tokens that must be decoded for the marks to be seen
    template: str  # its source
    marks_are_tokens: bool  # is each mark of reasoning one token that is no ordinary text?

    def reader(
        self, prompt_end: str, names: frozenset[str] | None, max_calls: int | None = None
    ) -> MessageReader:
        """For one choice. `prompt_end`: see `end_of`. `names`: of the tools offered; None: calls
        are left as text."""
        calls = None if names is None else self.calls.parser(names, max_calls)
        if self.reasoning is None:
            return MessageReader(None, calls)
        is_open = self.reasoning.is_open(prompt_end)
        return MessageReader(ReasoningParser(self.reasoning, is_open=is_open), calls)


def end_of(prompt: Sequence[int], text: TextModel) -> str:
    """As much of a prompt as tells whether its answer begins inside of reasoning."""
    return text.decode(prompt[-TAIL_TOKENS:])


def dialect_of(text: TextModel, settings: ApiSettings) -> Dialect:
    return _dialect(text, settings.tool_call_parser, settings.reasoning_parser)


@lru_cache(maxsize=64)
def _dialect(text: TextModel, tool_call_parser: str, reasoning_parser: str) -> Dialect:
    template = _template_source(text)
    tokens = text.tokenizer.get_vocab(with_added_tokens=True)
    calls = (
        tool_formats.BY_NAME[tool_call_parser]
        if tool_call_parser
        else tool_formats.detect(template, tokens)
    )
    thoughts = (
        reasoning_formats.BY_NAME[reasoning_parser]
        if reasoning_parser
        else reasoning_formats.detect(template, tokens)
    )
    marks = {*calls.marks, *(thoughts.marks if thoughts else ())}
    ids = {tokens[mark] for mark in marks if mark in tokens}
    special_ids = text.vocabulary.special_ids

    def is_special(mark: str) -> bool:  # as the grammar library sees it
        in_brackets = mark.startswith("<") and mark.endswith(">")
        return mark in tokens and (in_brackets or tokens[mark] in special_ids)

    return Dialect(
        calls,
        thoughts,
        frozenset(ids & special_ids),
        template,
        marks_are_tokens=thoughts is not None and all(map(is_special, thoughts.marks)),
    )


def _template_source(text: TextModel) -> str:
    try:
        return text.chat_template(with_tools=True).source
    except BadRequest:  # none: only /v1/completions works
        return ""
