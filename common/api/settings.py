"""What an operator may choose about the API front end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.api.responses.store import StoreLimits
from common.version import VERSION


@dataclass(frozen=True, slots=True)
class ApiSettings:
    api_keys: tuple[str, ...] = ()  # none: open to everybody who reaches the port
    max_body_bytes: int = 1 << 20
    access_log: Literal["off", "text", "json"] = "off"
    version: str = VERSION
    max_logprobs: int = 20
    max_sequences: int = 1024  # prompts times choices of one request
    allow_chat_template: bool = False  # may a client bring its own template?
    open_metrics: bool = False  # /metrics without a key although keys are set
    own_guard_paths: frozenset[str] = frozenset()  # exact paths that check a secret of their own
    body_timeout_s: float = 30.0
    stalled_reader_s: float = 30.0  # a client that reads nothing for so long is dropped
    stored_responses: StoreLimits = StoreLimits()
    max_background: int = 64  # responses that run with nobody waiting for them
