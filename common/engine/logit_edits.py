"""The rare sampling options, one row at a time: allowed ids, bias, bad words, min_tokens.

In this order, as users of vLLM expect; `penalties.py` comes next. A sequence without any of them
has no `LogitEdits` and pays nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.engine.sequence import Sequence
from common.request import SamplingParams

_FORBIDDEN = float("-inf")


def needs_edits(params: SamplingParams) -> bool:
    return bool(
        params.allowed_token_ids or params.logit_bias or params.bad_words or params.min_tokens
    )


class LogitEdits:
    """Bound to one sequence, whose output decides about bad words and min_tokens."""

    def __init__(
        self, sequence: Sequence, eos_token_ids: frozenset[int], device: torch.device
    ) -> None:
        params = sequence.params
        self._sequence = sequence
        self._allowed = _ids(params.allowed_token_ids, device)
        self._bias_ids = _ids([token for token, _ in params.logit_bias], device)
        self._bias = torch.tensor([bias for _, bias in params.logit_bias], device=device)
        self._ends = _ids(sorted(eos_token_ids | set(params.stop_token_ids)), device)

    def apply(self, row: Tensor) -> None:
        """Edit `row` [vocab] in place."""
        params, num_outputs = self._sequence.params, self._sequence.num_outputs
        if params.allowed_token_ids:
            kept = row[self._allowed]
            row.fill_(_FORBIDDEN)
            row[self._allowed] = kept
        if params.logit_bias:
            row[self._bias_ids] += self._bias
        if params.bad_words:
            self._forbid_bad_words(row)
        if num_outputs < params.min_tokens:
            row[self._ends] = _FORBIDDEN

    def _forbid_bad_words(self, row: Tensor) -> None:
        """Forbid the token that would complete one of the sequences in the output."""
        bad_words = self._sequence.params.bad_words
        longest = max(len(word) for word in bad_words)
        outputs = self._sequence.output_tokens
        recent = tuple(outputs[max(0, len(outputs) - longest) :].tolist())
        for word in bad_words:
            start = word[:-1]
            if len(recent) >= len(start) and recent[len(recent) - len(start) :] == start:
                row[word[-1]] = _FORBIDDEN


def _ids(token_ids: tuple[int, ...] | list[int], device: torch.device) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=device)
