"""Fields that would change the answer and that we cannot honour: a 400 that names them.

Never a silent 200. A value that asks for nothing (false, the default, an empty list) passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.errors import BadRequest

Harmless = Callable[[Any], bool]


def _is_empty(value: Any) -> bool:
    return value in (False, "", [], {})


def _one_of(*values: Any) -> Harmless:
    return lambda value: value in values


_STRUCTURED = (
    *("json_schema", "regex", "ebnf", "structural_tag"),  # SGLang's names
    *("guided_whitespace_pattern", "structural_tags"),
)
_INTERNAL = ("kv_transfer_params", "ec_transfer_params")
_REMEDY = {
    "kv_transfer_params": "; an instance takes vLLM's with --allow-external-router",
}
_EVERYWHERE: dict[str, Harmless] = {
    "use_beam_search": _is_empty,
    "length_penalty": _one_of(1.0),
    "logits_processors": _is_empty,
    "prompt_embeds": _is_empty,
    **dict.fromkeys(_STRUCTURED, _is_empty),
}
_CHAT: dict[str, Harmless] = {
    "audio": _is_empty,
    "mm_processor_kwargs": _is_empty,
    "modalities": _one_of(["text"], []),
    "moderation": _is_empty,
    "prediction": _is_empty,
    "web_search_options": lambda value: False,
}
# Where nobody reads what is reasoning.
_RAW: dict[str, Harmless] = {"thinking_token_budget": lambda value: False}
_COMPLETIONS: dict[str, Harmless] = {"suffix": _is_empty}

CHAT = {**_EVERYWHERE, **_CHAT}
COMPLETIONS = {**_EVERYWHERE, **_RAW, **_COMPLETIONS}
GENERATE = {**_EVERYWHERE, **_RAW}


def refuse(body: dict[str, Any], table: dict[str, Harmless]) -> None:
    """Raises BadRequest for the first field that cannot be honoured."""
    for name, value in body.items():
        if name in _INTERNAL or name.startswith("bootstrap_"):
            raise BadRequest(
                f"{name} is set between servers, never by a client{_REMEDY.get(name, '')}", name
            )
        harmless = table.get(name)
        if harmless is not None and value is not None and not harmless(value):
            raise BadRequest(f"{name} is not supported with this value yet; leave it out", name)
