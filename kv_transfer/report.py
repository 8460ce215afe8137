"""What one fetch cost, for whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass

from common import waterfall


@dataclass(frozen=True, slots=True)
class TransferReport:
    num_blocks: int
    num_bytes: int
    copy_s: float  # while at least one block was being copied
    exposed_s: float  # the producer had computed all → everything here

    def timings(self) -> dict[str, float]:
        """As `TokenEvent.timings`."""
        return {
            waterfall.TRANSFER: self.copy_s,
            waterfall.EXPOSED: self.exposed_s,
            waterfall.KV_BYTES: float(self.num_bytes),
            waterfall.KV_BLOCKS: float(self.num_blocks),
        }


@dataclass(slots=True)
class Spent:
    """The same while it grows. Monotonic seconds."""

    num_blocks: int = 0
    num_bytes: int = 0
    copy_s: float = 0.0
    computed_at: float = 0.0  # when the producer had named everything
    ended_at: float = 0.0

    def report(self) -> TransferReport:
        exposed_s = max(0.0, self.ended_at - self.computed_at)
        return TransferReport(self.num_blocks, self.num_bytes, self.copy_s, exposed_s)
