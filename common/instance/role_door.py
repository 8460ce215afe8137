"""`POST /role` of an instance: its administrator changes its role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from common.api.admin import check_admin_key, read_role
from common.api.body import read_object
from common.api.settings import ApiSettings
from common.wire import Role

ROLE = "/role"


def add_role_door(
    app: FastAPI,
    settings: ApiSettings,
    *,
    keys: Sequence[str],
    change: Callable[[Role, float | None], Awaitable[None]],
    describe: Callable[[], bytes],
) -> None:
    """`keys`: any of them opens; without one the door stays shut. `describe`: the answer."""

    async def set_role(request: Request) -> Response:
        off = "changing roles here is off; set ADMIN_API_KEY for the instance to use it"
        check_admin_key(request, keys, off)
        await change(*read_role(await read_object(request, settings)))
        return Response(describe(), media_type="application/json")

    app.add_api_route(ROLE, set_role, methods=["POST"], include_in_schema=False)
