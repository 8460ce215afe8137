"""The proxy's own pages: status for everybody who may use the API, changes for its administrator.

Who comes to `/` with a browser and without a key gets the page all the same, with a 401: it holds
nothing of the fleet, and asks for the key.

Changes are POST only and need the administrator's key, as `Authorization: Bearer KEY` or
`x-api-key`. A proxy that was started without such a key refuses them (403).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from common.api.admin import check_admin_key, read_role
from common.api.auth import KeyCheck
from common.api.body import read_object
from common.api.errors import HttpError
from common.api.observe import RequestMetrics
from common.api.settings import ApiSettings
from common.errors import BadRequest, ConfigError, InvalidApiKey
from common.options import parse_address
from proxy.page import load_page
from proxy.relay import Fleet
from proxy.status import describe_instances, own_part
from proxy.whole_status import whole

ADD, REMOVE, DRAIN = "/instances/add", "/instances/remove", "/instances/drain"
ROLE = "/instances/role"
OWN_GUARD_PATHS = frozenset((ADD, REMOVE, DRAIN, ROLE, "/"))
_OFF = "the admin API is off; set ADMIN_API_KEY for the proxy to use it"


def add_pages(app: FastAPI, fleet: Fleet, settings: ApiSettings, observed: RequestMetrics) -> None:
    """`settings`: with the keys that the page asks for, and no path of ours open."""
    keys, shown = KeyCheck(settings), load_page()

    async def status(request: Request) -> Response:
        return JSONResponse(whole([own_part(fleet, observed)]))

    async def instances(request: Request) -> Response:
        return JSONResponse({"instances": describe_instances(fleet)})

    async def page(request: Request) -> Response:
        try:
            keys.check("/", request.headers.raw)
        except InvalidApiKey:
            if "text/html" not in request.headers.get("accept", ""):
                raise
            return HTMLResponse(shown.html, status_code=401, headers=shown.headers)
        return HTMLResponse(shown.html, headers=shown.headers)

    for path, endpoint in (("/status", status), ("/instances", instances), ("/", page)):
        app.add_api_route(path, endpoint, methods=["GET"], include_in_schema=False)


def add_admin(app: FastAPI, fleet: Fleet, settings: ApiSettings, admin_key: str) -> None:
    actions: dict[str, Callable[[Fleet, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
        ADD: _add,
        REMOVE: _remove,
        DRAIN: _drain,
        ROLE: _set_role,
    }

    async def act(request: Request) -> Response:
        check_admin_key(request, (admin_key,), _OFF)
        body = await read_object(request, settings)
        return JSONResponse(await actions[request.url.path](fleet, body))

    for path in actions:
        app.add_api_route(path, act, methods=["POST"], include_in_schema=False)


async def _add(fleet: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    """`{"instance": "host:port"}`: its HTTP side is asked until it answers."""
    address = _text(body, "instance")
    try:
        parse_address("instance", address)
        fleet.membership.watch(address, "admin")
    except (ConfigError, ValueError) as error:
        raise BadRequest(str(error), "instance") from None
    complaint = await fleet.links.poll(address)
    target = fleet.membership.targets.get(address)
    found = target.instance_id if target else ""
    return {"instance": address, "id": found or None, "complaint": complaint or None}


async def _remove(fleet: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    """`{"instance": id or "host:port"}`: its requests move to others."""
    name = _text(body, "instance")
    if name in fleet.membership.targets and not _find(fleet, name):
        del fleet.membership.targets[name]
        return {"instance": name, "id": None}
    instance_id = _find_or_raise(fleet, name)
    fleet.links.apply(fleet.membership.remove(instance_id))
    return {"instance": name, "id": instance_id}


async def _drain(fleet: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    """`{"instance": id or "host:port", "drain": true}`: nothing new is sent to it; false undoes."""
    wanted = body.get("drain", True)
    if not isinstance(wanted, bool):
        raise BadRequest("drain: must be true or false", "drain")
    name = _text(body, "instance")
    instance_id = _find_or_raise(fleet, name)
    fleet.membership.drain(instance_id, wanted)
    left = fleet.num_assigned(instance_id)
    return {"instance": name, "id": instance_id, "draining": wanted, "requests": left}


async def _set_role(fleet: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    """`{"instance": id or "host:port", "role": "prefill", "drain_s": 30}`: answered when it has
    drained and serves the new role."""
    name = _text(body, "instance")
    role, drain_s = read_role(body)
    instance_id = _find_or_raise(fleet, name)
    before = fleet.membership.members[instance_id].info.role
    await fleet.roles.ask(instance_id, role, drain_s)
    return {"instance": name, "id": instance_id, "role": role, "was": before}


def _find(fleet: Fleet, name: str) -> str | None:
    """An instance by its id, or by the host:port of its HTTP side."""
    if name in fleet.membership.members:
        return name
    for instance_id, member in fleet.membership.members.items():
        if member.info.url == f"http://{name}":
            return instance_id
    target = fleet.membership.targets.get(name)
    return target.instance_id if target and target.instance_id in fleet.membership.members else None


def _find_or_raise(fleet: Fleet, name: str) -> str:
    instance_id = _find(fleet, name)
    if instance_id is None:
        raise HttpError(404, "not_found", "there is no such instance; see GET /instances")
    return instance_id


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise BadRequest(f"{name}: must be a text of 1 to 256 characters", name)
    return value
