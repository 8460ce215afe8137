"""Vectors of whole prompts, from what a model that does not generate gives for their tokens."""

from __future__ import annotations

from torch import Tensor

from common.engine.scheduler import Plan
from common.engine.sequence import Sequence
from common.model.spec import PoolingMethod


class Pooler:
    """A mean is summed up chunk by chunk; a prompt that was preempted begins anew."""

    def __init__(self, method: PoolingMethod) -> None:
        self._method = method
        self._sums: dict[str, Tensor] = {}  # by request id, of prompts in progress

    def prepare(self, sequence: Sequence) -> None:
        """Once, before its first step: which of its tokens the model is asked about."""
        # As for log-probabilities of the prompt: all of them, so none from the prefix cache.
        sequence.wants_prompt_logprobs = self._method != "last"

    def take(self, plan: Plan, rows: Tensor) -> list[bytes]:
        """A vector for each chunk that ends its prompt, as float32, little-endian.

        rows: [tokens asked about, numbers] float32, in the order of the chunks.
        """
        vectors: list[bytes] = []
        row = 0
        for chunk in plan.chunks:
            count = chunk.num_tokens if self._method != "last" else int(chunk.is_sampled)
            found = rows[row : row + count]
            row += count
            vector = found if self._method == "last" else self._add(chunk.sequence, found)
            if chunk.is_sampled:
                self.forget(chunk.sequence)
                if self._method == "mean":
                    vector = vector / chunk.sequence.num_tokens
                vectors.append(vector.cpu().numpy().astype("<f4").tobytes())
        return vectors

    def forget(self, sequence: Sequence) -> None:
        """Idempotent."""
        self._sums.pop(sequence.request_id, None)

    def _add(self, sequence: Sequence, rows: Tensor) -> Tensor:
        """[1, numbers]: the sum over all tokens so far, or the first one's row."""
        known = self._sums.get(sequence.request_id) if sequence.num_computed else None
        if known is None:
            known = rows[:1] if self._method == "cls" else rows.sum(dim=0, keepdim=True)
        elif self._method == "mean":
            known = known + rows.sum(dim=0, keepdim=True)
        self._sums[sequence.request_id] = known
        return known
