"""The moment after which a client does not want its answer any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.admission.admission import Place, Stage
from common.errors import DeadlineExceeded

_WHERE = {
    Stage.QUEUE: "while it waited for its turn",
    Stage.PREFILL: "before its first token",
    Stage.DECODE: "in the middle of its answer",
}


@dataclass(frozen=True, slots=True)
class Deadline:
    at: float  # monotonic
    error: Callable[[], DeadlineExceeded]  # asked when it has come

    @property
    def left_s(self) -> float:
        return max(0.0, self.at - time.monotonic())


def stage_of(places: Sequence[Place]) -> Stage:
    """How far a request of several sequences has come: as far as its last one."""
    stages = {place.stage for place in places}
    return next((stage for stage in _WHERE if stage in stages), Stage.DECODE)


def missed(timeout_s: float, stage: Stage) -> DeadlineExceeded:
    error = DeadlineExceeded(f"the request's {timeout_s:g} s were over {_WHERE[stage]}")
    error.headers = {"x-should-retry": "false"}  # OpenAI's clients would try again by themselves
    return error
