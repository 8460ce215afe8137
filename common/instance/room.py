"""One engine as the capacity behind a waiting room: its seats, and the prompts before it."""

from __future__ import annotations

from collections.abc import Callable

from common.admission.admission import Want, backlog_of, seats_of
from common.engine.interface import EngineLoad


class EngineRoom:
    """Requests of proxies run in the same engine: its load counts them, too."""

    def __init__(self, load: Callable[[], EngineLoad], max_num_seqs: int) -> None:
        self._load = load
        self._max_num_seqs = max_num_seqs

    def has_room(self, want: Want) -> bool:
        """The load does not know yet of what came in a moment ago; `want` does."""
        if not want.num_running:
            return True
        load = self._load()
        taken = max(want.num_running, load.num_running + load.num_waiting)
        before = max(want.num_begun, load.num_waiting_tokens)
        seats = seats_of(self._max_num_seqs, is_only=want.is_only)
        return taken < seats and before < backlog_of(want)

    def backlog(self) -> int:
        return self._load().num_waiting_tokens
