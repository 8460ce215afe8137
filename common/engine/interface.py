"""What goes into an engine and what comes out of one step. Plain frozen data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from common.engine.prefix_log import PrefixEvent
from common.errors import ConfigError, XpydError
from common.request import TokenEvent


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of one engine. Refused at start (`ConfigError`) if they cannot work together."""

    max_model_len: int  # prompt and output tokens of one sequence
    max_num_seqs: int = 64  # sequences in one step
    max_num_batched_tokens: int = 2048  # token budget of one step
    max_num_waiting: int = 1024  # requests queued before new ones are refused
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
        if self.max_num_waiting < 0:
            raise ConfigError("--max-num-waiting must not be negative")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens ({self.max_num_batched_tokens}) must be at least "
                f"--max-num-seqs ({self.max_num_seqs}): a running sequence takes one token a step"
            )


@dataclass(frozen=True, slots=True)
class FilledBlocks:
    """Blocks of an offered prompt that became readable in this step, in block table order.

    The step took one hold on each: whoever receives this owes one `Engine.free` per block.
    """

    request_id: str
    first: int  # index of block_ids[0] in the sequence's block table
    block_ids: tuple[int, ...]
    epochs: tuple[int, ...]
    hashes: tuple[str, ...]  # hex digests of the prefix chain; the last may be of a partial block
    num_tokens: int  # tokens readable now, from the start of the sequence
    is_last: bool


@dataclass(frozen=True, slots=True)
class StepResult:
    events: list[TokenEvent]
    filled: list[FilledBlocks]
    failed: list[tuple[str, XpydError]]  # terminal for the request
    num_tokens: int = 0  # tokens computed; 0 with work left: blocked until blocks come back
    prefixes: tuple[PrefixEvent, ...] = ()  # only after `Engine.report_prefixes`

    def is_empty(self) -> bool:
        return not (self.events or self.filled or self.failed or self.prefixes)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    num_running: int
    num_waiting: int
    num_waiting_tokens: int  # still to be computed before a token comes out
    free_blocks: int  # free or evictable
    total_blocks: int
