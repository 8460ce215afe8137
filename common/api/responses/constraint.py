"""What the output of a response must match: `text.format`, or a call that is asked for."""

from __future__ import annotations

import json

from common.api.constraints import constraint_of
from common.api.responses.offer import Offer
from common.api.responses.protocol import ResponseRequest
from common.errors import BadRequest
from common.request import Constraint


def constraint_of_response(ask: ResponseRequest, offer: Offer) -> Constraint | None:
    """Raises BadRequest."""
    if offer.mode == "required":
        raise BadRequest("tool_choice is not supported with this value yet", "tool_choice")
    wanted = ask.text.format
    if (given := constraint_of(ask)) is not None:
        if wanted.type != "text":
            raise BadRequest(f"only one of text.format and {given.field} can hold", given.field)
        return given
    if wanted.type == "json_object":
        return Constraint("json_object", "")
    if wanted.type == "json_schema":
        return Constraint("json_schema", json.dumps(wanted.schema_, ensure_ascii=False))
    return None
