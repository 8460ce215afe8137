"""What one forward pass is given. The model owns this type; the engine fills it in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.model.lora.adapter import AdapterRows


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """A packed batch: the new tokens of all scheduled sequences, one after the other.

    Sequence i owns rows `cu_seqlens[i]:cu_seqlens[i + 1]`; they are the last tokens of its context,
    so a decode step is a sequence with one row and a prefill chunk one with many.
    """

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64
    slots: Tensor  # [tokens] int64: block id * block_size + offset where K and V go
    cu_seqlens: Tensor  # [seqs + 1] int32
    context_lens: Tensor  # [seqs] int32: tokens in cache after this step's K and V are stored
    block_tables: Tensor  # [seqs, max blocks] int32; unused entries 0
    logits_rows: Tensor  # [rows] int64: which of the tokens need logits
    # Upper bounds, known on the host: a GPU would have to be waited for.
    max_query_len: int
    max_context_len: int
    adapters: tuple[AdapterRows, ...] = ()  # of this step; rows of none run without
