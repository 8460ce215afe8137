"""Repetition, presence and frequency penalties, for all rows that use them in one go."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.request import SamplingParams


class PenaltyCounts:
    """The distinct tokens of one sequence, and how often each is in its output.

    Grows with the sequence: a step adds its one token, it does not walk over all of them.
    """

    def __init__(self, params: SamplingParams, num_prompt: int) -> None:
        self.params = params
        self._num_prompt = num_prompt
        self._num_seen = 0
        self._places: dict[int, int] = {}  # token id → index in the arrays
        self._ids: NDArray[np.int64] = np.empty(64, dtype=np.int64)
        self._counts: NDArray[np.float32] = np.zeros(64, dtype=np.float32)

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Of each id, in the output only."""
        return self._counts[: len(self._places)]

    def catch_up(self, tokens: NDArray[np.int64]) -> None:
        """`tokens`: all of prompt and output so far."""
        for position, token in enumerate(tokens[self._num_seen :].tolist(), start=self._num_seen):
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            if position >= self._num_prompt:
                self._counts[place] += 1
        self._num_seen = len(tokens)


def needs_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def apply_penalties(logits: Tensor, penalised: dict[int, PenaltyCounts]) -> None:
    """Edit the given rows of `logits` [rows, vocab] (contiguous) in place."""
    sizes = [len(counts.ids) for counts in penalised.values()]

    def per_token(name: str) -> Tensor:
        values = [getattr(counts.params, name) for counts in penalised.values()]
        return _tensor(np.repeat(np.array(values, dtype=np.float32), sizes), logits.device)

    offsets = np.repeat(np.array(list(penalised), dtype=np.int64) * logits.shape[1], sizes)
    ids = np.concatenate([counts.ids for counts in penalised.values()])
    counts = _tensor(np.concatenate([c.counts for c in penalised.values()]), logits.device)
    places = _tensor(offsets + ids, logits.device)
    flat = logits.view(-1)
    values, factor = flat[places], per_token("repetition_penalty")
    values = torch.where(values > 0, values / factor, values * factor)
    values -= per_token("frequency_penalty") * counts
    values -= per_token("presence_penalty") * (counts > 0)
    flat[places] = values


def _tensor(values: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
