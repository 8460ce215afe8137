"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM users know them, for whoever
holds the administrator's key. What they bring about is the `AdapterDoor`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from common.api.admin import check_admin_key
from common.api.body import read_object
from common.api.settings import ApiSettings
from common.errors import BadRequest
from common.lora_modules import NAME_RULE, is_adapter_name

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
PATHS = frozenset((LOAD, UNLOAD))
MAX_PATH_CHARS = 1024
_OFF = "the admin API is off; set ADMIN_API_KEY to use it"


class AdapterDoor(Protocol):
    """Both raise XpydError if nothing, or not all, was done."""

    async def load(self, name: str, path: str) -> None: ...
    async def unload(self, name: str) -> None: ...


def add_adapter_doors(
    app: FastAPI, settings: ApiSettings, *, keys: Sequence[str], door: AdapterDoor
) -> None:
    """`keys`: any of them opens; without one the doors stay shut."""

    async def load(request: Request) -> Response:
        check_admin_key(request, keys, _OFF)
        body = await read_object(request, settings)
        name, path = _name(body), body.get("lora_path")
        if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH_CHARS:
            raise BadRequest(
                f"lora_path: must be a text of 1 to {MAX_PATH_CHARS} characters", "lora_path"
            )
        if body.get("load_inplace"):
            raise BadRequest("load_inplace is not supported; unload it first", "load_inplace")
        _refuse_others(body, {"lora_name", "lora_path", "load_inplace"})
        await door.load(name, path)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(request: Request) -> Response:
        check_admin_key(request, keys, _OFF)
        body = await read_object(request, settings)
        name = _name(body)
        _refuse_others(body, {"lora_name", "lora_int_id"})
        await door.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    for path, endpoint in ((LOAD, load), (UNLOAD, unload)):
        app.add_api_route(path, endpoint, methods=["POST"], include_in_schema=False)


def _name(body: dict[str, Any]) -> str:
    name = body.get("lora_name")
    if not isinstance(name, str) or not is_adapter_name(name):
        raise BadRequest(f"lora_name: must be {NAME_RULE}", "lora_name")
    return name


def _refuse_others(body: dict[str, Any], known: set[str]) -> None:
    for name in body.keys() - known:
        raise BadRequest(f"{name[:64]} is not supported here", name[:64])
