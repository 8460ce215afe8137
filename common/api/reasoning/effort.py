"""`reasoning_effort` in the words of a chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Switches by which templates turn reasoning on and off: Qwen3 and GLM, DeepSeek and Granite.
_SWITCHES = ("enable_thinking", "thinking")


def effort_variables(effort: str | None, template: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for the template. `given`: the client's own, which come first."""
    if effort is None:
        return {}
    variables: dict[str, Any] = {"reasoning_effort": effort}
    for switch in _SWITCHES:
        if re.search(rf"\b{switch}\b", template):
            variables[switch] = effort != "none"
    return {name: value for name, value in variables.items() if name not in given}
