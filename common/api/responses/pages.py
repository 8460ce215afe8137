"""Pages of a list of items: `limit`, `order`, `after`, `before`, as the SDK's cursors use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.api.responses.items import Item
from common.errors import BadRequest

_MAX_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Page:
    limit: int = 20
    ascending: bool = False
    after: str | None = None  # an item's id: the page begins behind it
    before: str | None = None  # and ends before this one


def read_page(query: Mapping[str, str]) -> Page:
    limit = query.get("limit", "20")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= _MAX_LIMIT:
        raise BadRequest(f"limit: must be a number from 1 to {_MAX_LIMIT}", "limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("order: must be 'asc' or 'desc'", "order")
    return Page(int(limit), order == "asc", query.get("after"), query.get("before"))


def page_of(items: Sequence[Item], page: Page) -> dict[str, Any]:
    """`items` in the order in which they were said. Raises BadRequest."""
    ordered = list(items if page.ascending else reversed(items))
    ids = [item.id for item in ordered]
    start = _position(ids, page.after, "after") + 1 if page.after else 0
    stop = _position(ids, page.before, "before") if page.before else len(ordered)
    found = ordered[start:stop]
    shown = found[: page.limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(found) > len(shown),
    }


def _position(ids: list[str], item_id: str, param: str) -> int:
    if item_id not in ids:
        raise BadRequest(f"{param}: there is no item {item_id[:64]!r}", param)
    return ids.index(item_id)
