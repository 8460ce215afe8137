"""What the text of a response must match: `text.format`, or vLLM's `structured_outputs`."""

from __future__ import annotations

import msgspec

from common.api.constraints import constraint_of
from common.api.responses.protocol import ResponseRequest
from common.errors import BadRequest
from common.request import Constraint


def content_constraint(ask: ResponseRequest) -> Constraint | None:
    """Raises BadRequest naming the field."""
    try:
        found = constraint_of(ask)
    except BadRequest as error:
        raise BadRequest(_our_words(error.message), _our_words(error.param or "")) from None
    if found is None:
        return None
    return msgspec.structs.replace(found, field=_our_words(found.field))


def _our_words(text: str) -> str:
    """The field's name as clients of this endpoint know it."""
    return text.replace("response_format.json_schema", "text.format").replace(
        "response_format", "text.format"
    )
