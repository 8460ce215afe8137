"""One request's changing state while an engine runs it. Decides nothing but when it is finished."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.engine.constraint_compiler import Compilation
from common.engine.constraint_state import ConstraintState
from common.engine.penalties import PenaltyCounts
from common.model.lora.adapter import Adapter
from common.request import EngineRequest, FinishReason, TokenLogprob


class RowEdits(Protocol):
    """What the sampler keeps for a sequence with rare options (`logit_edits.py`)."""

    def apply(self, row: Tensor) -> None: ...


class Stage(Enum):
    NEW = "new"  # the scheduler has not seen it
    HELD = "held"  # its constraint is being compiled
    WAITING = "waiting"  # holds no blocks
    READY = "ready"  # adopted: holds its blocks, waits for a seat
    RUNNING = "running"
    DONE = "done"


class Sequence:
    """`tokens[:num_tokens]`: prompt and output; KV of `tokens[:num_computed]` is in the blocks."""

    __slots__ = (
        "adapter",
        "added_at",
        "block_ids",
        "compilation",
        "constraint",
        "cost",
        "digests",
        "edits",
        "flow",
        "had_turn",
        "is_adopted",
        "is_plain",
        "is_unconfirmed",
        "key",
        "num_cached_tokens",
        "num_computed",
        "num_named",
        "num_offered",
        "num_prompt",
        "num_tokens",
        "offer",
        "params",
        "penalties",
        "prompt_logprobs",
        "rank",
        "request",
        "request_id",
        "row",
        "stage",
        "started_at",
        "stop_ids",
        "tokens",
        "wants_prompt_logprobs",
    )

    def __init__(
        self,
        request: EngineRequest,
        arrival: int,
        eos_token_ids: frozenset[int],
        *,
        offer: bool = False,
        now: float = 0.0,
        adapter: Adapter | None = None,
    ) -> None:
        params = request.sampling
        self.adapter = adapter  # kept in memory by this, though it be unloaded meanwhile
        self.request = request
        self.request_id = request.request_id
        self.params = params
        self.flow = request.flow
        self.rank = (request.priority, arrival)
        self.key = self.rank  # who runs first, who is preempted last; `turns.py` says
        self.had_turn = False  # it has been running
        self.offer = offer
        self.stage = Stage.NEW

        self.num_prompt = len(request.prompt_token_ids)
        self.num_tokens = self.num_prompt + len(request.output_token_ids)
        capacity = self.num_prompt + max(params.max_tokens, len(request.output_token_ids))
        self.cost = max(1, self.num_tokens)  # of its turn
        self.tokens: NDArray[np.int64] = np.empty(capacity, dtype="<i8")
        self.tokens[: self.num_prompt] = request.prompt_token_ids
        self.tokens[self.num_prompt : self.num_tokens] = request.output_token_ids
        self.stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self.stop_ids |= eos_token_ids

        self.num_computed = 0
        self.block_ids: list[int] = []
        self.digests: list[bytes] = []  # of the full blocks known so far
        self.num_named = 0  # leading blocks whose digest the pool knows
        self.num_offered = 0  # leading blocks already reported as filled
        self.row: int | None = None  # in the batch's block table
        self.num_cached_tokens = 0
        self.is_adopted = False  # its KV was loaded, not computed here
        self.is_plain = False  # the sampler knows: greedy, and nothing beside
        self.is_unconfirmed = False  # and may be wrong

        self.wants_prompt_logprobs = (
            params.prompt_logprobs is not None and not request.output_token_ids
        )
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        # Rare sampling options; None: it uses none.
        self.edits: RowEdits | None = None
        self.penalties: PenaltyCounts | None = None
        self.compilation: Compilation | None = None  # of its constraint, until `constraint` is set
        self.constraint: ConstraintState | None = None
        self.added_at = now
        self.started_at: float | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id} {self.stage.value} "
            f"{self.num_computed}/{self.num_tokens} blocks={len(self.block_ids)})"
        )

    @property
    def num_outputs(self) -> int:
        return self.num_tokens - self.num_prompt

    @property
    def num_made(self) -> int:
        """Of the outputs, those that this engine made."""
        return self.num_outputs - len(self.request.output_token_ids)

    @property
    def output_tokens(self) -> NDArray[np.int64]:
        return self.tokens[self.num_prompt : self.num_tokens]

    @property
    def num_to_compute(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def ends_next(self) -> bool:
        """Whatever its next token is, it is the last one here."""
        return self.offer or self.num_outputs + 1 >= self.params.max_tokens

    def append(self, token_id: int) -> None:
        self.tokens[self.num_tokens] = token_id
        self.num_tokens += 1

    def finish_reason(self) -> FinishReason | None:
        """Why the last output token, or its absence, ends the sequence; None: it goes on."""
        num_outputs = self.num_tokens - self.num_prompt
        if (
            num_outputs > self.params.min_tokens
            and int(self.tokens[self.num_tokens - 1]) in self.stop_ids
        ):
            return FinishReason.STOP
        if self.constraint is not None and self.constraint.is_complete:
            return FinishReason.LENGTH if self.constraint.was_cut else FinishReason.STOP
        return FinishReason.LENGTH if num_outputs >= self.params.max_tokens else None

    def stop_token_id(self, eos_token_ids: frozenset[int]) -> int | None:
        """After a stop: the id in `stop_token_ids` that did it; None if it was EOS, or the end of
        what a constraint allows."""
        last = int(self.tokens[self.num_tokens - 1])
        is_eos = last in eos_token_ids and not self.params.ignore_eos
        return None if is_eos or last not in self.stop_ids else last

    def forget_blocks(self) -> list[int]:
        """Back to nothing computed; the caller gives the returned blocks back."""
        blocks, self.block_ids = self.block_ids, []
        self.num_computed = self.num_named = 0
        return blocks
