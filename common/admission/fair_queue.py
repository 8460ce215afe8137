"""Whose request goes next: fair between tenants, by priority and arrival within one. Plain data.

Each tenant has a counter of the work it got, in tokens over its weight; the next request is one of
the tenant whose counter is lowest. A tenant that comes back starts no lower than those who wait, so
nobody saves up. Virtual token counters: Sheng et al. 2024, arXiv:2401.00588, algorithm 2.

So while two tenants wait, neither gets more than the other by more than what one request costs,
whoever sends more. Knows no clock, no capacity and no I/O.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Waiting:
    ticket: int  # rises with arrival
    tenant: str
    cost: int  # tokens of its prompt
    priority: int  # lower goes first, among those of its tenant

    @property
    def place(self) -> tuple[int, int]:
        return self.priority, self.ticket


@dataclass(slots=True)
class _Line:
    """The waiting requests of one tenant, the next one first."""

    places: list[tuple[int, int]] = field(default_factory=list)
    cost: int = 0  # of all together


@dataclass(slots=True)
class FairQueue:
    num_tokens: int = 0  # of all prompts that wait
    _lines: dict[str, _Line] = field(default_factory=dict)  # none is empty
    _waiting: dict[int, Waiting] = field(default_factory=dict)
    _served: dict[str, float] = field(default_factory=dict)  # the counters
    _weights: dict[str, float] = field(default_factory=dict)
    _last: str = ""  # the tenant that had its turn last
    _next_ticket: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, tenant: str, cost: int, *, priority: int = 0, weight: float = 1.0) -> int:
        """The request's ticket. `weight`: how much of the fleet its tenant may have."""
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        entry = Waiting(ticket, tenant, cost, priority)
        if tenant not in self._lines:
            self._served[tenant] = self._counter(tenant)
            self._lines[tenant] = _Line()
        line = self._lines[tenant]
        insort(line.places, entry.place)
        line.cost += cost
        self._weights[tenant] = weight
        self._waiting[ticket] = entry
        self.num_tokens += cost
        return ticket

    def head(self, but_not: Container[str] = ()) -> Waiting | None:
        """Who goes next. Tenants with equal counters: whose first request came first.

        but_not:  tenants that are passed over
        """
        tenants = [tenant for tenant in self._lines if tenant not in but_not]
        if not tenants:
            return None
        tenant = min(tenants, key=lambda t: (self._served[t], self._lines[t].places[0][1]))
        return self._waiting[self._lines[tenant].places[0][1]]

    def pop(self, ticket: int | None = None) -> Waiting:
        """Take the head out, or whoever has this ticket, and charge its tenant with the prompt."""
        entry = self.head() if ticket is None else self._waiting[ticket]
        assert entry is not None
        self._last = entry.tenant
        self.remove(entry.ticket)
        self.charge(entry.tenant, entry.cost)
        return entry

    def remove(self, ticket: int) -> Waiting | None:
        """It does not wait any more. None: it did not."""
        entry = self._waiting.pop(ticket, None)
        if entry is None:
            return None
        line = self._lines[entry.tenant]
        del line.places[bisect_left(line.places, entry.place)]
        line.cost -= entry.cost
        if not line.places:
            del self._lines[entry.tenant]
        self.num_tokens -= entry.cost
        return entry

    def charge(self, tenant: str, num_tokens: int) -> None:
        """The tenant got so much work, now or since it was last charged."""
        weight = self._weights.get(tenant, 1.0)
        self._served[tenant] = self._served.get(tenant, 0.0) + num_tokens / weight

    def tokens_before(self, tenant: str, priority: int = 0, weight: float = 1.0) -> int:
        """Of how many waiting tokens comes a new request of this tenant behind, about?"""
        mine = self._lines.get(tenant)
        own = 0
        if mine is not None:
            end = bisect_left(mine.places, (priority + 1, -1))
            whole = end == len(mine.places)
            places = mine.places[:end]
            own = mine.cost if whole else sum(self._waiting[t].cost for _, t in places)
        mark = self._counter(tenant) + own / weight  # of mine, when the new one is next
        total = float(own)
        for other, line in self._lines.items():
            if other != tenant:
                due = (mark - self._served[other]) * self._weights[other]
                total += min(line.cost, max(0.0, due))
        return round(total)

    def _counter(self, tenant: str) -> float:
        """What a tenant's counter is, or would be if it came now."""
        served = self._served.get(tenant, 0.0)
        if tenant in self._lines:
            return served
        last = self._served.get(self._last, 0.0)
        return max(served, min((self._served[t] for t in self._lines), default=last))
