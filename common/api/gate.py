"""The outermost layer of the app: limits, keys, request ids, errors and the access log.

Plain ASGI, so that streams and disconnects pass through untouched. Knows nothing of models. A HEAD
is answered as the GET would be, without its body.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.api.anthropic.errors import is_messages_path
from common.api.auth import KeyCheck
from common.api.context import RequestInfo, attach, clean_label
from common.api.disconnect import ClientGone
from common.api.errors import HttpError, error_response
from common.api.limits import rate_headers
from common.api.protocol import MAX_TIMEOUT_S
from common.api.settings import ApiSettings
from common.errors import BadRequest, XpydError
from common.waterfall import server_timing

log = logging.getLogger(__name__)
access = logging.getLogger("xpyd.access")

_MAX_URL_BYTES = 8192
_MAX_HEADERS = 256
_MAX_HEADER_BYTES = 64 << 10
_SECONDS = re.compile(rb"[0-9]{1,6}(\.[0-9]{1,9})?")
_INT32 = re.compile(rb"-?[0-9]{1,10}")
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_CLIENT_GONE = 499  # nobody reads it; it is for the log, as nginx writes it


class Gate:
    def __init__(
        self,
        app: ASGIApp,
        settings: ApiSettings,
        on_refusal: Callable[[XpydError], None],
        answer: Callable[[XpydError, str], Response] = lambda error, path: error_response(error),
    ) -> None:
        """`answer`: an error as the clients of this path read errors."""
        self._app = app
        self._answer = answer
        self._keys = KeyCheck(settings)
        self._access_log = settings.access_log
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        info = RequestInfo(uuid.uuid4().hex)
        attach(scope, info)
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}

        async def send_labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                info.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    *_our_headers(info, scope["path"]),
                ]
            elif is_head:
                message["body"] = b""
            await send(message)

        try:
            _check_size(scope)
            _read_headers(scope, info)
            info.tenant = self._keys.check(scope["path"], scope["headers"])
            await self._app(scope, receive, send_labelled)
        except ClientGone:
            info.status = _CLIENT_GONE
        except XpydError as error:
            await self._refuse(error, info, scope, receive, send_labelled)
        except Exception:
            log.exception("request failed request_id=%s", info.request_id)
            failure = XpydError("the server failed to answer this request; it has been logged")
            await self._refuse(failure, info, scope, receive, send_labelled)
        finally:
            if self._access_log != "off":
                method = "HEAD" if is_head else scope["method"][:16]
                as_json = self._access_log == "json"
                access.info("%s", _access_line(info, method, scope["path"], as_json=as_json))

    async def _refuse(
        self, error: XpydError, info: RequestInfo, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if info.status:  # the answer has begun: all that is left is to close the connection
            raise error
        self._on_refusal(error)
        await self._answer(error, scope["path"])(scope, receive, send)


def _check_size(scope: Scope) -> None:
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > _MAX_URL_BYTES:
        raise HttpError(414, "uri_too_long", f"the URL is longer than {_MAX_URL_BYTES} bytes")
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
        raise HttpError(
            431,
            "headers_too_large",
            f"at most {_MAX_HEADERS} headers of {_MAX_HEADER_BYTES} bytes in all are allowed",
        )


def _read_headers(scope: Scope, info: RequestInfo) -> None:
    """`X-Request-Id` names the request; without one we do. Raises HttpError."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            info.name(value.decode("latin-1"))
        elif name == b"x-session-id":
            info.session_id = clean_label(value.decode("latin-1"))
        elif name == b"x-vllm-priority":
            info.priority = _priority(value.strip())
        elif name == b"x-request-timeout":
            info.timeout_s = _timeout(value.strip())


def _priority(value: bytes) -> int:
    if not _INT32.fullmatch(value) or not -(1 << 31) <= int(value) < 1 << 31:
        raise BadRequest("X-Vllm-Priority must be a 32-bit integer", "X-Vllm-Priority")
    return int(value)


def _timeout(value: bytes) -> float:
    if not _SECONDS.fullmatch(value) or not 0.0 < float(value) <= MAX_TIMEOUT_S:
        raise BadRequest(
            f"X-Request-Timeout must be seconds, above 0 and at most {MAX_TIMEOUT_S}",
            "X-Request-Timeout",
        )
    return float(value)


def _our_headers(info: RequestInfo, path: str) -> list[tuple[bytes, bytes]]:
    label = info.request_id.encode("latin-1")
    headers = [(b"x-request-id", label), *rate_headers(info.rate_readings)]
    if is_messages_path(path):
        headers.append((b"request-id", label))  # where Anthropic's clients look
    if info.timings:
        headers.append((b"server-timing", server_timing(info.timings).encode("latin-1")))
    return headers


def _access_line(info: RequestInfo, method: str, path: str, *, as_json: bool) -> str:
    """No prompt text and no query: one line, whatever the client sent."""
    fields: dict[str, Any] = {
        "method": method,
        "path": path[:200],
        "status": info.status,
        "ms": round((time.monotonic() - info.started) * 1000, 1),
        "request_id": info.request_id,
        "prompt_tokens": info.prompt_tokens,
        "completion_tokens": info.completion_tokens,
    }
    if info.session_id:
        fields["session_id"] = info.session_id
    if as_json:
        return msgspec.json.encode(fields).decode()
    return " ".join(f"{name}={_one_line(value)}" for name, value in fields.items())


def _one_line(value: object) -> str:
    return _NOT_PRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))
