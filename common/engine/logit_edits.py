"""The rare sampling options, one row at a time: what changes single logits before temperature.

In the order that users of vLLM expect: allowed ids, bias, bad words, min_tokens, penalties.
A sequence without any of them has no `LogitEdits` and pays nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.engine.sequence import Sequence
from common.request import SamplingParams

_FORBIDDEN = float("-inf")


def needs_edits(params: SamplingParams) -> bool:
    return bool(
        params.allowed_token_ids
        or params.logit_bias
        or params.bad_words
        or params.min_tokens
        or _has_penalties(params)
    )


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


class LogitEdits:
    """Bound to one sequence; grows with it, so that a step costs no walk over all its tokens."""

    def __init__(
        self, sequence: Sequence, eos_token_ids: frozenset[int], device: torch.device
    ) -> None:
        params = sequence.params
        self._sequence = sequence
        self._allowed = _ids(params.allowed_token_ids, device)
        self._bias_ids = _ids([token for token, _ in params.logit_bias], device)
        self._bias = torch.tensor([bias for _, bias in params.logit_bias], device=device)
        self._ends = _ids(sorted(eos_token_ids | set(params.stop_token_ids)), device)
        self._penalties = Penalties(sequence, device) if _has_penalties(params) else None

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
        if self._penalties is not None:
            self._penalties.apply(row)

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


class Penalties:
    """Distinct tokens of prompt and output, and how often each is in the output."""

    def __init__(self, sequence: Sequence, device: torch.device) -> None:
        self._sequence = sequence
        self._device = device
        self._index: dict[int, int] = {}  # token id → place in _ids and _counts
        self._ids: list[int] = []
        self._counts: list[float] = []
        self._num_seen = 0

    def apply(self, row: Tensor) -> None:
        self._catch_up()
        params = self._sequence.params
        ids = torch.tensor(self._ids, device=self._device)
        counts = torch.tensor(self._counts, device=self._device)
        logits = row[ids]
        factor = params.repetition_penalty
        logits = torch.where(logits > 0, logits / factor, logits * factor)
        logits -= params.frequency_penalty * counts
        logits -= params.presence_penalty * (counts > 0)
        row[ids] = logits

    def _catch_up(self) -> None:
        sequence = self._sequence
        fresh = sequence.tokens[self._num_seen : sequence.num_tokens].tolist()
        for position, token in enumerate(fresh, start=self._num_seen):
            place = self._index.setdefault(token, len(self._ids))
            if place == len(self._ids):
                self._ids.append(token)
                self._counts.append(0.0)
            if position >= sequence.num_prompt:
                self._counts[place] += 1.0
        self._num_seen = sequence.num_tokens


def _ids(token_ids: tuple[int, ...] | list[int], device: torch.device) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=device)
