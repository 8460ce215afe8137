"""A plan turned into `ForwardInputs`: one packed batch, built with numpy, no Python per token.

On a GPU the whole batch goes over in two copies from pinned memory, which nobody waits for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.engine.scheduler import Chunk, Plan
from common.engine.sequence import Sequence
from common.model.inputs import ForwardInputs
from common.model.lora.adapter import AdapterRows

_ALIGN = 4  # elements
_DTYPES = {"<i4": torch.int32, "<i8": torch.int64}


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

    def build(self, plan: Plan, token_ids: Tensor | None = None) -> ForwardInputs:
        """Brings the plan's chunks into the order of their rows: by adapter, if they have any.

        token_ids:  of a plan that is ahead: [sequences] int64, on the device, in its order
        """
        if not plan.is_ahead and any(sequence.adapter is not None for sequence, _ in plan.chunks):
            plan.chunks.sort(key=_adapter_digest)
        for sequence in plan.preempted:
            self.release(sequence)
        for sequence in plan.grown:
            if sequence.row is None:
                sequence.row = self._free_rows.pop()
            self._tables[sequence.row, : len(sequence.block_ids)] = sequence.block_ids

        chunks = plan.chunks
        if token_ids is None and sum(count for _, count in chunks) == len(chunks):
            return self._single_tokens(plan)
        starts = np.array([s.num_tokens if plan.is_ahead else s.num_computed for s, _ in chunks])
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
        wanted = [positions, slots, _logits_rows(plan, cu_seqlens)]
        if token_ids is None:
            known = [s.tokens[s.num_computed : s.num_computed + count] for s, count in chunks]
            token_ids, *wide = self._tensors([np.concatenate(known), *wanted])
        else:
            wide = self._tensors(wanted)
        max_blocks = -(-int(ends.max()) // self._block_size)
        narrow = self._tensors([cu_seqlens, ends.astype(np.int32), self._tables[rows, :max_blocks]])
        return ForwardInputs(
            token_ids=token_ids,
            positions=wide[0],
            slots=wide[1],
            cu_seqlens=narrow[0],
            context_lens=narrow[1],
            block_tables=narrow[2],
            logits_rows=wide[2],
            max_query_len=int(counts.max()),
            max_context_len=int(ends.max()),
            adapters=_adapter_rows(plan, cu_seqlens),
        )

    def _single_tokens(self, plan: Plan) -> ForwardInputs:
        """The same where every chunk is of one token: almost every step of a decode instance."""
        chunks, size = plan.chunks, self._block_size
        count = len(chunks)
        rows = np.array([sequence.row for sequence, _ in chunks])
        positions = np.array([sequence.num_computed for sequence, _ in chunks])
        token_ids = np.array([s.tokens.item(s.num_computed) for s, _ in chunks])
        number, offset = np.divmod(positions, size)
        slots = self._tables[rows, number] * np.int64(size) + offset
        longest = int(positions.max()) + 1
        cu_seqlens = np.arange(count + 1, dtype=np.int32)
        tables = self._tables[rows, : -(-longest // size)]
        wide = self._tensors([token_ids, positions, slots, _logits_rows(plan, cu_seqlens)])
        narrow = self._tensors([cu_seqlens, (positions + 1).astype(np.int32), tables])
        return ForwardInputs(
            token_ids=wide[0],
            positions=wide[1],
            slots=wide[2],
            cu_seqlens=narrow[0],
            context_lens=narrow[1],
            block_tables=narrow[2],
            logits_rows=wide[3],
            max_query_len=1,
            max_context_len=longest,
            adapters=_adapter_rows(plan, cu_seqlens),
        )

    def _tensors(self, arrays: list[NDArray[Any]]) -> list[Tensor]:
        """The arrays, all of one dtype, on the device."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        # Each begins at a multiple of 16 bytes: kernels are compiled for that.
        sizes = [-(-array.size // _ALIGN) * _ALIGN for array in arrays]
        flat = torch.empty(sum(sizes), dtype=_DTYPES[arrays[0].dtype.str], pin_memory=True)
        for part, array in zip(torch.split(flat, sizes), arrays, strict=True):
            part.numpy()[: array.size] = array.ravel()
        there = torch.split(flat.to(self._device, non_blocking=True), sizes)
        return [
            part[: array.size].view(array.shape) for part, array in zip(there, arrays, strict=True)
        ]


def _logits_rows(plan: Plan, cu_seqlens: NDArray[np.int32]) -> NDArray[np.int64]:
    """The last token of each sampled sequence; every token where prompt logprobs are asked for."""
    if plan.is_ahead:
        return np.arange(len(plan.chunks))
    if not any(sequence.wants_prompt_logprobs for sequence, _ in plan.chunks):
        lasts = [
            i for i, (s, count) in enumerate(plan.chunks) if count == s.num_tokens - s.num_computed
        ]
        if len(lasts) == len(plan.chunks):
            return cu_seqlens[1:].astype(np.int64) - 1
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


def _adapter_digest(chunk: Chunk) -> str:
    adapter = chunk.sequence.adapter
    return "" if adapter is None else adapter.digest


def _adapter_rows(plan: Plan, cu_seqlens: NDArray[np.int32]) -> tuple[AdapterRows, ...]:
    """The batch's rows by adapter."""
    found: list[AdapterRows] = []
    for number, (sequence, _) in enumerate(plan.chunks):
        if sequence.adapter is None:
            continue
        first, end = int(cu_seqlens[number]), int(cu_seqlens[number + 1])
        if found and found[-1].adapter is sequence.adapter:
            first = found.pop().rows.start
        found.append(AdapterRows(sequence.adapter, slice(first, end)))
    return tuple(found)
