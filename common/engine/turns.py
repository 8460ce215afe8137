"""Whose sequence comes next when several flows share an engine: a number for each, the lowest
first. Plain data; knows no blocks and no clock.

Within a flow: priority, then arrival. Between flows: turns, measured in tokens, so that who sends a
hundred requests gets no more of the engine than who sends one. A sequence starts where its flow's
last one ends, or where the engine is now, if that is later: nobody saves up, and a flow that comes
anew is next. Start-time fair queueing: Goyal, Vin, Cheng 1996, section 2.

With one flow the order is that of priority and arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

MAX_FLOWS = 4096  # then those are forgotten that are behind anyway

Rank = tuple[int, int]  # priority and arrival: unique


class Ranked(Protocol):
    """What takes turns."""

    flow: int
    rank: Rank
    cost: int  # tokens known when it entered, at least 1
    key: tuple[int, int]  # its place in the order of all; `Turns` sets it
    had_turn: bool  # and so does this: it keeps its key from then on


@dataclass(slots=True)
class _Flow:
    end: int  # where its next one may start
    last: Rank  # the highest that it ever had


@dataclass(slots=True)
class Turns:
    _now: int = 0  # the highest start of those that had their turn
    _flows: dict[int, _Flow] = field(default_factory=dict)

    def enter(self, newcomer: Ranked, others: Iterable[Ranked]) -> bool:
        """Give it a key. True: keys of others have changed, for it goes before some of its flow.

        others:  all that are here and have keys; looked at only if need be
        """
        flow = self._flows.get(newcomer.flow)
        if flow is None:
            self._forget()
            flow = self._flows[newcomer.flow] = _Flow(self._now, newcomer.rank)
        start = max(self._now, flow.end)
        flow.end = start + newcomer.cost
        newcomer.key = (start, newcomer.rank[1])
        if newcomer.rank >= flow.last:
            flow.last = newcomer.rank
            return False
        mine = [each for each in others if each.flow == newcomer.flow and not each.had_turn]
        self._put_in_order(flow, [newcomer, *mine])
        return True

    def had_its_turn(self, one: Ranked) -> None:
        one.had_turn = True
        self._now = max(self._now, one.key[0])

    def charge(self, flow: int, num_tokens: int) -> None:
        """For what it got beyond what was known when it entered."""
        if flow in self._flows:
            self._flows[flow].end += num_tokens

    def _put_in_order(self, flow: _Flow, mine: list[Ranked]) -> None:
        """By rank, one behind the other, from where the first of them was to start."""
        start = min(each.key[0] for each in mine)
        for each in sorted(mine, key=lambda one: one.rank):
            each.key = (start, each.rank[1])
            start += each.cost
        flow.end = max(flow.end, start)

    def _forget(self) -> None:
        """Who is behind the engine starts where the engine is, remembered or not."""
        if len(self._flows) >= MAX_FLOWS:
            self._flows = {name: f for name, f in self._flows.items() if f.end > self._now}
