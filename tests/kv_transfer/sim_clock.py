"""Pretend time for the hand-over's simulation: events in order, each with a line in a trace.

Everything that happens depends on the seed only, so a schedule that failed can be run again.
"""

from __future__ import annotations

import heapq
import itertools
import random

MAX_EVENTS = 50_000


class Clock:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.trace = []
        self.num_events = 0
        self.injections = {}  # event number: what is done just before it
        self._queue = []
        self._order = itertools.count()

    def read(self):
        return self.now

    def log(self, text):
        self.trace.append(f"{self.now:9.4f}  {text}")

    def after(self, delay_s, node, act):
        """Do `act` then, unless `node` has been killed; later, if it is stopped. `node` may be
        None: the world itself."""
        if node is not None and not node.is_up:
            return
        life = None if node is None else node.life
        self._push(self.now + delay_s, node, life, act)

    def _push(self, time, node, life, act):
        heapq.heappush(self._queue, (time, next(self._order), node, life, act))

    def run(self):
        """Until nothing is left to happen."""
        while self._queue:
            time, _, node, life, act = heapq.heappop(self._queue)
            if node is not None and node.life != life:
                continue
            if node is not None and time < node.stopped_until:
                self._push(node.stopped_until, node, life, act)
                continue
            self.now = max(self.now, time)
            self.num_events += 1
            assert self.num_events < MAX_EVENTS, "the schedule does not end"
            if inject := self.injections.pop(self.num_events, None):
                inject()
                if node is not None and node.life != life:
                    continue
            act()


class Node:
    """A process: killed, it forgets; stopped, it sleeps."""

    def __init__(self, clock, name):
        self.clock = clock
        self.name = name
        self.life = 1
        self.is_up = True
        self.stopped_until = 0.0

    def log(self, text):
        self.clock.log(f"{self.name:3} {text}")

    def after(self, delay_s, act):
        self.clock.after(delay_s, self, act)

    def kill(self):
        self.log("KILLED")
        self.life += 1
        self.is_up = False

    def stop(self, for_s):
        self.log(f"STOPPED for {for_s:.1f} s")
        self.stopped_until = self.clock.now + for_s
