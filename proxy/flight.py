"""What the proxy keeps of each request under way, and what it counts over all of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from common.errors import XpydError
from common.request import TokenEvent
from common.unread import Unread
from proxy.choreography import Choreography, Phase
from proxy.observed import Observed
from proxy.sightings import Trip


@dataclass(slots=True)
class Flight:
    """One request under way."""

    machine: Choreography
    model: str
    turn: int
    taken_at: float  # when its client last took an event, or had none to take
    trip: Trip
    outbox: deque[TokenEvent] = field(default_factory=deque)
    unread: Unread = field(default_factory=Unread)  # what is in there
    waiter: asyncio.Future[None] | None = None
    error: XpydError | None = None
    wire_id: str = ""
    phase: Phase = Phase.NEW
    assigned: tuple[str, ...] = ()
    kv_fingerprint: str = ""  # of the instances that computed what the client has
    num_cached_on_decode: int = 0  # of it, its decode instance had before it was to load the rest
    num_cached: int = 0  # tokens of the prompt that its prefill instance should have
    observed: Observed = field(default_factory=Observed)

    def put(self, event: TokenEvent) -> None:
        if not self.outbox:
            self.taken_at = time.monotonic()
        self.outbox.append(event)
        self.unread.came(event)

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


@dataclass(slots=True)
class Counts:
    requests: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    migrations: int = 0  # attempts after the first
    lost_instances: int = 0
    stray_events: int = 0  # tokens of attempts that are over
    cached_tokens: int = 0  # of prompts, at the instances that they were sent to by prefix
    routed_apart: int = 0  # attempts on a prefill and a decode instance
    other_sources: int = 0  # of those, after a load from somebody else had failed
    routed_whole: int = 0  # attempts on one instance
    rejections: dict[str, int] = field(default_factory=dict)  # by error code
