"""Which proxy waits for which request, and the one message per engine step that each of them gets.

Every request opened here is closed exactly once: by its last event, by a failure, by an abort. A
proxy hears `Accepted` before any token: a fast step may be over before whoever added the request
knows that it was taken.
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


@dataclass(slots=True)
class _Open:
    origin: Origin
    handle: KVHandle | None = None
    is_accepted: bool = False
    timings: dict[str, float] | None = None  # for its first event, beside the engine's
    held: list[TokenEvent] | None = None  # not sent until `release`


class Outbox:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._open: dict[str, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str, origin: Origin) -> None:
        self._open[request_id] = _Open(origin)

    def attach(self, request_id: str, handle: KVHandle) -> None:
        """The handle that `Accepted` will carry."""
        if entry := self._open.get(request_id):
            entry.handle = handle

    def tell(self, request_id: str, timings: dict[str, float]) -> None:
        """What its first event is to say of where the time went before the engine had it."""
        if entry := self._open.get(request_id):
            entry.timings = timings

    def hold(self, request_id: str) -> None:
        """Keep its events back until it is known whether they are right."""
        if entry := self._open.get(request_id):
            entry.held = []

    def release(self, request_id: str) -> None:
        """They are: send what was kept back, and what comes."""
        if held := self.discard(request_id):
            self.deliver(held)

    def discard(self, request_id: str) -> list[TokenEvent]:
        """They are not, those that were kept back; others will come."""
        entry = self._open.get(request_id)
        if entry is None or entry.held is None:
            return []
        held, entry.held = entry.held, None
        return held

    def origin(self, request_id: str) -> Origin | None:
        entry = self._open.get(request_id)
        return entry.origin if entry else None

    def close(self, request_id: str) -> Origin | None:
        """Forget the request; its later events go nowhere. Idempotent."""
        entry = self._open.pop(request_id, None)
        return entry.origin if entry else None

    def of_peer(self, peer: bytes) -> list[str]:
        return [name for name, entry in self._open.items() if entry.origin.peer == peer]

    def accept(self, request_id: str) -> None:
        """Say that the request was taken, once."""
        entry = self._open.get(request_id)
        if entry is not None and not entry.is_accepted:
            entry.is_accepted = True
            origin = entry.origin
            self._send(origin.peer, Accepted(request_id, origin.attempt, entry.handle))

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
            entry = self._open.get(event.request_id)
            if entry is None:
                continue
            if entry.held is not None:
                entry.held.append(event)
                continue
            if not entry.is_accepted:
                self.accept(event.request_id)
            if entry.timings is not None:
                event = msgspec.structs.replace(event, timings=event.timings | entry.timings)
                entry.timings = None
            batch = batches.setdefault(entry.origin.peer, ([], []))
            batch[0].append(event)
            batch[1].append(entry.origin.attempt)
            if event.finish_reason is not None:
                del self._open[event.request_id]
        for peer, (sent, attempts) in batches.items():
            self._send(peer, Tokens(tuple(sent), tuple(attempts)))
