"""What one request's events tell about speed: which of them is an observation of what."""

from __future__ import annotations

from dataclasses import dataclass

from common import waterfall
from common.request import TokenEvent
from proxy.choreography import Choreography
from proxy.estimates import Estimates


@dataclass(slots=True)
class Observed:
    """Of one request. Only its first attempt counts: later ones carry what others computed."""

    first_at: float | None = None  # when P's first token came

    def first_event(
        self,
        estimates: Estimates,
        machine: Choreography,
        source: str,
        event: TokenEvent,
        now: float,
    ) -> None:
        """Call with the first event of each instance, before the machine takes it."""
        if machine.attempt != 1 or source not in machine.instances:
            return
        request = machine.request
        is_computed_there = event.index <= len(request.output_token_ids)
        if is_computed_there:
            num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
            seconds = event.timings.get(waterfall.PREFILL)
            if seconds is not None:
                computed = max(1, num_tokens - event.num_cached_tokens)
                estimates.prefilled(source, computed, seconds, now)
            if source == machine.prefill:
                self.first_at = now
        elif self.first_at is not None and machine.prefill is not None:
            step = event.timings.get(waterfall.FIRST_STEP, 0.0)
            seconds = max(0.0, now - self.first_at - step)
            num_tokens = len(request.prompt_token_ids)
            estimates.handed_over(machine.prefill, source, num_tokens, seconds, now)
            self.first_at = None
