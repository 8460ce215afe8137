"""How much of an answer may wait in memory for a client that does not read it."""

from __future__ import annotations

from common.request import TokenEvent

MAX_UNREAD_BYTES = 1 << 20  # of one sequence; one event is always kept, however large


class Unread:
    """Counts what came and was not taken yet."""

    __slots__ = ("num_bytes",)

    def __init__(self) -> None:
        self.num_bytes = 0

    def came(self, event: TokenEvent) -> None:
        self.num_bytes += size_of(event)

    def taken(self, event: TokenEvent) -> None:
        self.num_bytes -= size_of(event)

    def is_too_much(self, num_events: int) -> bool:
        return self.num_bytes > MAX_UNREAD_BYTES and num_events > 1


def size_of(event: TokenEvent) -> int:
    """Bytes in memory, about."""
    size = 128 + 40 * len(event.token_ids)
    for entry in (*event.logprobs, *event.prompt_logprobs):
        size += 96 + 112 * (len(entry.top) if entry is not None else 0)
    return size
