"""How a chat template takes earlier calls: arguments as a mapping or as JSON text, and ids."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from common.chat_template import ChatTemplate
from common.errors import BadRequest

_KEY = "probe_key"
_SHORT_IDS = re.compile(r"length\s*[!=]=\s*9\b")  # Mistral's templates check for it
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


def shown_id(template: ChatTemplate, call_id: str) -> str:
    """A call's id as the template takes it: some refuse all but nine letters and digits."""
    if not _SHORT_IDS.search(template.source) or re.fullmatch("[a-zA-Z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


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
