"""Which proxy waits for which request, and the one message per engine step that each of them gets.

Every request opened here is closed exactly once: by its last event, by a failure, by an abort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from common.errors import XpydError
from common.request import TokenEvent
from common.wire import Accepted, Failed, KVHandle, Tokens

Send = Callable[[bytes, msgspec.Struct], bool]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked: the proxy's link and its attempt number."""

    peer: bytes
    attempt: int


class Outbox:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._origins: dict[str, Origin] = {}

    def __len__(self) -> int:
        return len(self._origins)

    def open(self, request_id: str, origin: Origin) -> None:
        self._origins[request_id] = origin

    def origin(self, request_id: str) -> Origin | None:
        return self._origins.get(request_id)

    def close(self, request_id: str) -> Origin | None:
        """Forget the request; its later events go nowhere. Idempotent."""
        return self._origins.pop(request_id, None)

    def of_peer(self, peer: bytes) -> list[str]:
        return [name for name, origin in self._origins.items() if origin.peer == peer]

    def accept(self, request_id: str, handle: KVHandle | None = None) -> None:
        if origin := self._origins.get(request_id):
            self._send(origin.peer, Accepted(request_id, origin.attempt, handle))

    def fail(self, request_id: str, error: XpydError) -> None:
        if origin := self.close(request_id):
            self._send(
                origin.peer,
                Failed(request_id, origin.attempt, error.code, error.message, error.param),
            )

    def deliver(self, events: Iterable[TokenEvent]) -> None:
        """Send one step's events, one message per proxy; events of unknown requests are dropped."""
        batches: dict[bytes, tuple[list[TokenEvent], list[int]]] = {}
        for event in events:
            origin = self._origins.get(event.request_id)
            if origin is None:
                continue
            batch = batches.setdefault(origin.peer, ([], []))
            batch[0].append(event)
            batch[1].append(origin.attempt)
            if event.finish_reason is not None:
                del self._origins[event.request_id]
        for peer, (sent, attempts) in batches.items():
            self._send(peer, Tokens(tuple(sent), tuple(attempts)))
