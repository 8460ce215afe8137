"""What is known of the HTTP request being served: one object per request, in the ASGI scope."""

from __future__ import annotations

import re
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from common.admission.rate_limit import Reading

_KEY = "xpyd.request"
_MAX_LABEL_CHARS = 128
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


@dataclass(slots=True)
class RequestInfo:
    """Written by the gate and the endpoint, read by the gate for headers and the access log."""

    request_id: str  # a label for people: the client's word for it or ours, never a key
    is_named: bool = False  # by the client's header
    tenant: str = ""  # digest of the key it came with
    priority: int = 0  # of the X-Vllm-Priority header
    session_id: str = ""  # a label for logs and routing, never a key
    timeout_s: float | None = None  # of the X-Request-Timeout header
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    body: dict[str, Any] | None = None  # read and decoded
    body_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = field(
        default_factory=dict
    )  # seconds per stage (common/waterfall.py); the observation's own, which grows
    rate_readings: Sequence[Reading] = ()  # for the headers
    answer_fields: dict[str, Any] = field(default_factory=dict)  # beside `choices`, not streamed

    def name(self, label: str, session: str = "") -> None:
        """The body's `request_id` and `session_id`, which the headers' overrule."""
        self.session_id = self.session_id or clean_label(session)
        if not self.is_named and (cleaned := clean_label(label)):
            self.request_id = cleaned
            self.is_named = True


def clean_label(text: str) -> str:
    """A client's text made safe for a header and a log line."""
    return _NOT_PRINTABLE.sub("", text)[:_MAX_LABEL_CHARS]


def attach(scope: MutableMapping[str, Any], info: RequestInfo) -> None:
    scope[_KEY] = info


def info_of(request: Request) -> RequestInfo:
    info: RequestInfo = request.scope[_KEY]
    return info
