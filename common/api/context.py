"""What is known of the HTTP request being served: one object per request, in the ASGI scope."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

_KEY = "xpyd.request"


@dataclass(slots=True)
class RequestInfo:
    """Written by the gate and the endpoint, read by the gate for headers and the access log."""

    request_id: str  # the client's word for it: a label, never a key
    tenant: str = ""  # digest of the key it came with
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    body_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = field(
        default_factory=dict
    )  # seconds per stage until the first token


def attach(scope: MutableMapping[str, Any], info: RequestInfo) -> None:
    scope[_KEY] = info


def info_of(request: Request) -> RequestInfo:
    info: RequestInfo = request.scope[_KEY]
    return info
