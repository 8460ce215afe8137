"""What administrators send: a key of their own, apart from those that let people use the API, and
the wish for another role.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, get_args

from starlette.requests import Request

from common.api.key_ring import digest_of
from common.errors import BadRequest, InvalidApiKey, PermissionDenied
from common.wire import Role

ROLES: tuple[Role, ...] = get_args(Role)


def check_admin_key(request: Request, keys: Sequence[str], off: str) -> None:
    """`Authorization: Bearer KEY` or `x-api-key` must be one of `keys`, compared in constant time.

    Raises InvalidApiKey, or PermissionDenied saying `off` if there is none.
    """
    wanted = [digest_of(key.encode()) for key in keys if key]
    if not wanted:
        raise PermissionDenied(off)
    given = request.headers.get("x-api-key", "")
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        given = bearer.strip()
    shown = digest_of(given.encode())
    if sum(hmac.compare_digest(shown, digest) for digest in wanted) == 0:  # each is compared
        raise InvalidApiKey("this needs the administrator's key")


def read_role(body: dict[str, Any]) -> tuple[Role, float | None]:
    """`{"role": "decode", "drain_s": 10}`; the second may be missing. Raises BadRequest."""
    role, drain_s = body.get("role"), body.get("drain_s")
    if role not in ROLES:
        raise BadRequest(f"role: must be one of {', '.join(ROLES)}", "role")
    if drain_s is not None and (isinstance(drain_s, bool) or not isinstance(drain_s, int | float)):
        raise BadRequest("drain_s: must be a number of seconds", "drain_s")
    return role, drain_s
