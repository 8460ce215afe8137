"""What an instance's role counts, on the metrics page, whichever roles it plays in its life."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

from common.instance.roles import Roles
from common.metrics import Metrics
from common.wire import Role


class RoleMetrics:
    """A name stays on the page once some role has brought it: gauges are 0 in roles without it,
    counters stand still."""

    def __init__(self, metrics: Metrics, roles: Roles) -> None:
        self._metrics = metrics
        self._roles = roles
        self._known: set[str] = set()
        metrics.gauges(
            "instance_role",
            "1 for the role that the instance plays now.",
            lambda: {(role,): float(role == roles.role) for role in get_args(Role)},
            labels=("role",),
        )
        metrics.counter_from(
            "role_changes", "Changes of role, since the start.", lambda: roles.num_switches
        )
        self.refresh()

    def refresh(self) -> None:
        """Call when the role has changed."""
        worker = self._roles.worker
        for name in self._new(worker.gauges()):
            self._metrics.gauge(name, f"{_words(name)}, now.", partial(self._roles.gauge, name))
        for name in self._new(worker.counters()):
            self._metrics.counter_from(
                name, f"{_words(name)}, since the start.", partial(self._roles.count, name)
            )

    def _new(self, readings: dict[str, Callable[[], float]]) -> list[str]:
        names = [name for name in readings if name not in self._known]
        self._known.update(names)
        return names


def _words(name: str) -> str:
    return name.replace("kv_", "KV ").replace("_", " ").capitalize()
