"""A plan turned into `ForwardInputs`: one packed batch, built with numpy, no Python per token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from common.engine.scheduler import Plan
from common.engine.sequence import Sequence
from common.model.inputs import ForwardInputs


class BatchBuilder:
    """Keeps the block tables of all running sequences in one array, a row each, between steps."""

    def __init__(
        self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device
    ) -> None:
        self._tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._block_size = block_size
        self._device = device

    def release(self, sequence: Sequence) -> None:
        """The sequence leaves (or is preempted): its row is free for another. Idempotent."""
        if sequence.row is not None:
            self._free_rows.append(sequence.row)
            sequence.row = None

    def build(self, plan: Plan) -> ForwardInputs:
        for sequence in plan.preempted:
            self.release(sequence)
        for sequence in plan.grown:
            if sequence.row is None:
                sequence.row = self._free_rows.pop()
            self._tables[sequence.row, : len(sequence.block_ids)] = sequence.block_ids

        chunks = plan.chunks
        starts = np.array([sequence.num_computed for sequence, _ in chunks])
        counts = np.array([num_tokens for _, num_tokens in chunks])
        rows = np.array([sequence.row for sequence, _ in chunks])
        ends = starts + counts
        cu_seqlens = np.zeros(len(chunks) + 1, dtype=np.int32)
        np.cumsum(counts, out=cu_seqlens[1:])

        # token t of the batch is token `positions[t]` of chunk `owner[t]`
        owner = np.repeat(np.arange(len(chunks)), counts)
        positions = np.arange(cu_seqlens[-1]) + (starts - cu_seqlens[:-1])[owner]
        blocks = self._tables[rows[owner], positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        token_ids = np.concatenate(
            [s.tokens[s.num_computed : s.num_computed + count] for s, count in chunks]
        )
        max_blocks = -(-int(ends.max()) // self._block_size)
        return ForwardInputs(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            cu_seqlens=self._tensor(cu_seqlens),
            context_lens=self._tensor(ends.astype(np.int32)),
            block_tables=self._tensor(self._tables[rows, :max_blocks]),
            logits_rows=self._tensor(_logits_rows(plan, cu_seqlens)),
        )

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def _logits_rows(plan: Plan, cu_seqlens: NDArray[np.int32]) -> NDArray[np.int64]:
    """The last token of each sampled sequence; every token where prompt logprobs are asked for."""
    if not any(chunk.sequence.wants_prompt_logprobs for chunk in plan.chunks):
        lasts = [i for i, chunk in enumerate(plan.chunks) if chunk.is_sampled]
        return cu_seqlens[1:][lasts].astype(np.int64) - 1
    rows = [
        np.arange(
            cu_seqlens[i] if chunk.sequence.wants_prompt_logprobs else cu_seqlens[i + 1] - 1,
            cu_seqlens[i + 1],
        )
        for i, chunk in enumerate(plan.chunks)
        if chunk.is_sampled or chunk.sequence.wants_prompt_logprobs
    ]
    return np.concatenate(rows).astype(np.int64)
