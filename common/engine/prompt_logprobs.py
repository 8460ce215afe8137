"""Log-probabilities of prompt tokens, gathered chunk by chunk while a prompt is computed."""

from __future__ import annotations

from torch import Tensor

from common.engine.sampler import describe
from common.engine.scheduler import Plan
from common.engine.sequence import Sequence


def take_prompt_logprobs(plan: Plan, logits: Tensor) -> Tensor:
    """Keep what was asked for; returns the rows that are to be sampled.

    logits: as `batch.py` asked for them: all rows of chunks that want prompt logprobs, the last
    row of the other sampled ones.
    """
    if not any(chunk.sequence.wants_prompt_logprobs for chunk in plan.chunks):
        return logits
    row, sampled_rows = 0, []
    for chunk in plan.chunks:
        if chunk.sequence.wants_prompt_logprobs:
            _extend(chunk.sequence, logits[row : row + chunk.num_tokens])
            row += chunk.num_tokens
        elif chunk.is_sampled:
            row += 1
        if chunk.is_sampled:
            sampled_rows.append(row - 1)
    return logits[sampled_rows]


def _extend(sequence: Sequence, logits: Tensor) -> None:
    """logits: after tokens `num_computed`, `num_computed` + 1, …: each is about the next token."""
    known = sequence.prompt_logprobs  # of tokens 0 … len - 1; after a preemption more than computed
    skip = len(known) - 1 - sequence.num_computed
    first = sequence.num_computed + skip + 1
    targets = sequence.tokens[first : min(first + len(logits) - skip, sequence.num_prompt)].tolist()
    if targets:
        num_top = sequence.params.prompt_logprobs or 0
        rows = logits[skip : skip + len(targets)]
        known += describe(rows, targets, [num_top] * len(targets))
