"""The formats in which models write calls, as a table, and which of them a model uses.

Chosen by what the model's own chat template teaches it; by its tokens if the template says nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from common.api.tools import deepseek, kimi, mistral
from common.api.tools.hermes import read_hermes, tagged
from common.api.tools.llama import read_llama_json
from common.api.tools.parser import Grammar, ToolCallParser
from common.api.tools.pythonic import read_pythonic
from common.api.tools.writer import Writer


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True)
class CallShape:
    """How calls are spelled when they are demanded: `head`, calls with `separator`, `tail`. Each
    call: `before` name `between` arguments as JSON `after`."""

    before: str
    between: str
    after: str = ""
    separator: str = ""
    head: str = ""
    tail: str = ""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    name: str
    read: Grammar
    shape: CallShape
    clues: tuple[str, ...] = ()  # one of them in the template, or among the tokens, gives it away
    marks: tuple[str, ...] = ()  # tokens that the grammar must see, even if they are special
    begins_with_mark: bool = True  # False: a call may be all there is to see
    new_id: Callable[[], str] = _new_id
    aliases: tuple[str, ...] = field(default=())  # names that vLLM's users know

    def parser(self, names: frozenset[str], max_calls: int | None = None) -> ToolCallParser:
        """For one choice. `names`: of the tools that the client offered."""
        return ToolCallParser(self.read, names, Writer(self.new_id, max_calls))


_HERMES_SHAPE = CallShape(
    '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n"
)
_JSON_SHAPE = CallShape('{"name": "', '", "parameters": ', "}", separator="; ")
_DEEPSEEK_MARKS = (
    *(deepseek.CALLS_BEGIN, deepseek.CALLS_END),
    *(deepseek.CALL_BEGIN, deepseek.CALL_END, deepseek.SEPARATOR),
)

HERMES = ToolFormat(
    "hermes",
    read_hermes,
    _HERMES_SHAPE,
    clues=("<tool_call>",),
    marks=("<tool_call>", "</tool_call>"),
    aliases=("qwen", "qwen25", "qwen3"),
)

# The first format with a clue wins: the more telling ones come first.
FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        "deepseek_v3",
        deepseek.read_deepseek,
        CallShape(
            f"{deepseek.CALL_BEGIN}function{deepseek.SEPARATOR}",
            "\n```json\n",
            f"\n```{deepseek.CALL_END}",
            separator="\n",
            head=deepseek.CALLS_BEGIN,
            tail=deepseek.CALLS_END,
        ),
        clues=("```json' + '\\n'", "\\n```json\\n"),
        marks=_DEEPSEEK_MARKS,
        aliases=("deepseek_r1",),
    ),
    ToolFormat(
        "deepseek_v31",
        deepseek.read_deepseek,
        CallShape(
            deepseek.CALL_BEGIN,
            deepseek.SEPARATOR,
            deepseek.CALL_END,
            head=deepseek.CALLS_BEGIN,
            tail=deepseek.CALLS_END,
        ),
        clues=(deepseek.CALLS_BEGIN,),
        marks=_DEEPSEEK_MARKS,
    ),
    ToolFormat(
        "kimi_k2",
        kimi.read_kimi,
        CallShape(
            f"{kimi.CALL_BEGIN}functions.",
            f":0{kimi.ARGUMENTS}",
            kimi.CALL_END,
            head=kimi.CALLS_BEGIN,
            tail=kimi.CALLS_END,
        ),
        clues=(kimi.CALLS_BEGIN,),
        marks=(kimi.CALLS_BEGIN, kimi.CALLS_END, kimi.CALL_BEGIN, kimi.CALL_END, kimi.ARGUMENTS),
    ),
    ToolFormat(
        "mistral",
        mistral.read_mistral,
        CallShape("[TOOL_CALLS]", "[ARGS]"),
        clues=("[ARGS]",),
        marks=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        new_id=mistral.new_id,
    ),
    ToolFormat(
        "mistral_list",
        mistral.read_mistral,
        CallShape(
            '{"name": "', '", "arguments": ', "}", separator=", ", head="[TOOL_CALLS][", tail="]"
        ),
        clues=("[TOOL_CALLS]",),
        marks=("[TOOL_CALLS]",),
        new_id=mistral.new_id,
    ),
    ToolFormat(
        "pythonic",
        read_pythonic,
        _JSON_SHAPE,
        clues=("<|python_start|>", "[func_name1(", "func_name1(params_name1="),
        marks=("<|python_start|>", "<|python_end|>"),
        begins_with_mark=False,
        aliases=("llama4_pythonic",),
    ),
    ToolFormat(
        "granite",
        tagged("<|tool_call|>", ""),
        CallShape(
            '{"name": "', '", "arguments": ', "}", separator=", ", head="<|tool_call|>[", tail="]"
        ),
        clues=("<|tool_call|>",),
        marks=("<|tool_call|>",),
    ),
    HERMES,
    ToolFormat(
        "llama3_json",
        read_llama_json,
        _JSON_SHAPE,
        clues=("<|python_tag|>", '"parameters": dictionary of argument name'),
        marks=("<|python_tag|>",),
        begins_with_mark=False,
        aliases=("llama4_json", "llama"),
    ),
)

BY_NAME = {name: each for each in FORMATS for name in (each.name, *each.aliases)}


def detect(template: str, tokens: Container[str]) -> ToolFormat:
    """The format that a model with this chat template and these tokens writes. Hermes' if nothing
    tells: its marks stand in no ordinary text, so reading it does no harm."""
    for each in FORMATS:
        if any(clue in template for clue in each.clues):
            return each
    for each in FORMATS:
        if any(clue in tokens for clue in each.clues):
            return each
    return HERMES
