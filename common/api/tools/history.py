"""How a chat template takes the arguments of earlier calls: as a mapping, or as JSON text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from common.chat_template import ChatTemplate
from common.errors import BadRequest

_KEY = "probe_key"
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}


@lru_cache(maxsize=64)
def takes_text_arguments(template: ChatTemplate) -> bool:
    """Found by trying both on a small conversation. Most templates write a mapping as JSON; some
    (DeepSeek's) join the text of the arguments with other text."""
    if f'"{_KEY}"' in _rendered(template, {_KEY: 1}):
        return False
    return f'"{_KEY}"' in _rendered(template, f'{{"{_KEY}": 1}}')


def _rendered(template: ChatTemplate, arguments: object) -> str:
    function = {"name": "probe", "arguments": arguments}
    call = {"id": "probe1234", "type": "function", "function": function}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "probe1234", "name": "probe", "content": "1"},
    ]
    try:
        return template.render(messages, tools=[_TOOL])
    except BadRequest:
        return ""
