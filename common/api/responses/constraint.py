"""What the output of a response must match: `text.format`, or a call that is asked for."""

from __future__ import annotations

import json

from common.api.responses.offer import Offer
from common.api.responses.protocol import ResponseRequest
from common.errors import BadRequest
from common.request import Constraint


def constraint_of_response(ask: ResponseRequest, offer: Offer) -> Constraint | None:
    """Raises BadRequest."""
    if offer.mode == "required":
        raise BadRequest("tool_choice is not supported with this value yet", "tool_choice")
    if ask.structured_outputs:
        raise BadRequest("structured_outputs is not supported yet", "structured_outputs")
    wanted = ask.text.format
    if wanted.type == "json_object":
        return Constraint("json_object", "")
    if wanted.type == "json_schema":
        return Constraint("json_schema", json.dumps(wanted.schema_, ensure_ascii=False))
    return None
