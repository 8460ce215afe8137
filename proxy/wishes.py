"""What an administrator has asked of a proxy's fleet: kept for a worker that starts later."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)


class Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    watched: dict[str, str]  # host:port of the HTTP side: "static" or "admin"
    drained: dict[str, str]  # instance id: the incarnation that gets nothing new
    removed: dict[str, str]  # instance id: the incarnation that is not to come back


def write_wishes(path: Path, wishes: Wishes) -> None:
    """In one step: whoever reads sees all of it, or what was there before."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(wishes))
    new.replace(path)


def read_wishes(path: Path) -> Wishes | None:
    """None: nobody has asked for anything yet."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Wishes)
    except msgspec.MsgspecError as error:
        log.warning("%s cannot be read and is left alone: %s", path, error)
        return None
