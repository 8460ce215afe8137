"""Read a JSON object from a request: bounded in bytes, time and depth, strict in form."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Receive

from common.api.context import info_of
from common.api.disconnect import ClientGone, Interruption
from common.api.errors import HttpError
from common.api.settings import ApiSettings
from common.errors import BadRequest, PayloadTooLarge

MAX_DEPTH = 64


async def read_object(request: Request, settings: ApiSettings) -> dict[str, Any]:
    """The body without its `null` entries: null means absent. Raises 400, 408, 413 or 415.

    May be called again: what has been read is kept.
    """
    if (known := info_of(request).body) is not None:
        return known
    _check_headers(request, settings.max_body_bytes)
    interruption = Interruption()
    late = HttpError(408, "request_timeout", "the body did not arrive in time")
    timer = asyncio.get_running_loop().call_later(settings.body_timeout_s, interruption.end, late)
    try:
        data = await interruption.run(_read(request.receive, settings.max_body_bytes))
    finally:
        timer.cancel()
    info = info_of(request)
    info.body_bytes = len(data)
    info.body = parse_object(data)
    return info.body


def parse_object(data: bytes | bytearray) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise BadRequest(f"the JSON is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise BadRequest(f"the body is not valid JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    _check_depth(value)
    return {name: entry for name, entry in value.items() if entry is not None}


def _check_headers(request: Request, max_bytes: int) -> None:
    headers = request.headers
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HttpError(
            415, "unsupported_media_type", "send the body as Content-Type: application/json"
        )
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpError(415, "unsupported_media_type", "compressed bodies are not accepted")
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)


async def _read(receive: Receive, max_bytes: int) -> bytearray:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data += message.get("body", b"")
        if len(data) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return data


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes")


def _check_depth(value: Any) -> None:
    """Level by level, so that the check itself needs no deep stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise BadRequest(f"the JSON is nested deeper than {MAX_DEPTH} levels")
