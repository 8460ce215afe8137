"""Errors as HTTP answers: OpenAI's object, never a path, an address or a traceback."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from common.errors import BadRequest, XpydError

T = TypeVar("T", bound=BaseModel)

MAX_MESSAGE_CHARS = 1000


class HttpError(BadRequest):
    """A refusal that only HTTP knows: wrong method, wrong content type, URL too long …"""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


def error_response(error: XpydError) -> Response:
    return Response(
        error_body(error), error.status, error_headers(error), media_type="application/json"
    )


def error_headers(error: XpydError) -> dict[str, str]:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (401, 408, 413, 415):
        headers["Connection"] = "close"  # the body has not been read
    return headers


def error_body(error: XpydError) -> bytes:
    body = error.body()
    body["error"]["message"] = error.message[:MAX_MESSAGE_CHARS]
    return msgspec.json.encode(body)


def parse(model: type[T], body: dict[str, Any]) -> T:
    """The body as `model`. Raises BadRequest with the first thing that is wrong, as one line."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _from_validation(error) from None


def _from_validation(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    message = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"{param}: {message}" if param else message, param or None)


def http_error(request: Request, error: HTTPException) -> HttpError:
    """What the router says (unknown path, wrong method) as one of ours."""
    method, path = request.method[:16], request.url.path[:200]
    if error.status_code == 404:
        return HttpError(404, "not_found", f"there is no {method} {path}")
    if error.status_code == 405:
        headers = {"Allow": ", ".join(_allowed_methods(request))}
        return HttpError(405, "method_not_allowed", f"{path} does not take {method}", headers)
    return HttpError(error.status_code, "http_error", str(error.detail))


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes with this path, not only of the first. Where GET goes, HEAD goes (gate.py)."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)
