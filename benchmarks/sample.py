"""What one request came to: its times, its tokens, or why it failed. Knows no other request and no
target.

    due ──lag──▶ released ──queue──▶ sent ───────────▶ first token ──itl──▶ … ──▶ last token ─▶ end
     └─────────────────── TTFT ────────────────────────────┘ └──── TPOT × (tokens - 1) ──┘
     └─────────────────────────────────── E2EL ──────────────────────────────────────────────────┘

TTFT and E2EL count from `due`, the moment the schedule wanted the request to go out: a client or a
server that falls behind cannot make waiting requests look fast by sending them late (coordinated
omission, Gil Tene). All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Sample:
    index: int
    request_id: str
    due_s: float
    released_s: float  # when the schedule's timer fired
    sent_s: float  # when the request went out, after any wait for --max-concurrency
    end_s: float  # last chunk of the answer, or the failure
    arrivals_s: tuple[float, ...] = ()  # one per chunk that carried tokens
    chunk_tokens: tuple[
        int, ...
    ] = ()  # tokens in each such chunk; empty when the server does not tell
    input_tokens: int = 0
    output_tokens: int = 0
    wanted_tokens: int = 0
    is_counted: bool = True  # the server told output_tokens; else it is the number of chunks
    text: str = ""
    finish_reason: str | None = None
    server_timing: str | None = None  # the Server-Timing header
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def ttft_s(self) -> float | None:
        return self.arrivals_s[0] - self.due_s if self.arrivals_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first: right also when chunks carry several tokens."""
        if self.output_tokens < 2 or len(self.arrivals_s) < 2:
            return None
        later_tokens = self.output_tokens - (self.chunk_tokens[0] if self.chunk_tokens else 1)
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / later_tokens if later_tokens else None

    @cached_property
    def itls_s(self) -> tuple[float, ...]:
        """Gaps between neighbouring chunks."""
        times = self.arrivals_s
        return tuple(later - earlier for earlier, later in zip(times, times[1:], strict=False))

    @property
    def e2el_s(self) -> float:
        return self.end_s - self.due_s

    @property
    def lag_s(self) -> float:
        """How late the client itself was."""
        return self.released_s - self.due_s

    @property
    def queue_s(self) -> float:
        """How long --max-concurrency held the request back."""
        return self.sent_s - self.released_s
