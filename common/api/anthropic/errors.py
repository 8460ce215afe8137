"""Our errors as Anthropic's clients read them: their type names, their shape, their statuses."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from common.api.errors import MAX_MESSAGE_CHARS, error_headers
from common.errors import Unavailable, XpydError

OVERLOADED = 529  # their status for a server without capacity

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def is_messages_path(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def messages_error(error: XpydError) -> Response:
    status = OVERLOADED if error.status == Unavailable.status else error.status
    return Response(
        messages_error_body(error), status, error_headers(error), media_type="application/json"
    )


def messages_error_body(error: XpydError) -> bytes:
    """Their object has no `param`, so the message names the field."""
    status = OVERLOADED if error.status == Unavailable.status else error.status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = error.message
    if error.param and error.param not in message:
        message = f"{error.param}: {message}"
    return msgspec.json.encode(
        {"type": "error", "error": {"type": kind, "message": message[:MAX_MESSAGE_CHARS]}}
    )
