"""One step's inputs, from rank 0 to the others: a header that says the sizes, and one tensor.

Built and taken apart on the device, so that a GPU is not waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.model.inputs import ForwardInputs
from common.parallel.channel import Step


def header_of(inputs: ForwardInputs) -> Step:
    num_seqs, width = inputs.block_tables.shape
    return Step(
        len(inputs.token_ids),
        num_seqs,
        width,
        len(inputs.logits_rows),
        inputs.max_query_len,
        inputs.max_context_len,
    )


def flatten(inputs: ForwardInputs) -> Tensor:
    """All of them behind one another, int64."""
    return torch.cat(
        [
            inputs.token_ids,
            inputs.positions,
            inputs.slots,
            inputs.logits_rows,
            inputs.cu_seqlens.long(),
            inputs.context_lens.long(),
            inputs.block_tables.flatten().long(),
        ]
    )


def _sizes(header: Step) -> list[int]:
    tokens, seqs = header.num_tokens, header.num_seqs
    return [
        *(tokens, tokens, tokens, header.num_logits_rows),
        *(seqs + 1, seqs, seqs * header.table_width),
    ]


def room_for(header: Step, device: torch.device) -> Tensor:
    """What `flatten` made, to be received."""
    return torch.empty(sum(_sizes(header)), dtype=torch.int64, device=device)


def unflatten(header: Step, flat: Tensor) -> ForwardInputs:
    """Each tensor in memory of its own: kernels are compiled for where a tensor begins."""
    wide = torch.split(flat, _sizes(header))
    token_ids, positions, slots, rows = (part.clone() for part in wide[:4])
    cu_seqlens, context_lens, tables = (part.int() for part in wide[4:])
    return ForwardInputs(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        cu_seqlens=cu_seqlens,
        context_lens=context_lens,
        block_tables=tables.view(header.num_seqs, header.table_width),
        logits_rows=rows,
        max_query_len=header.max_query_len,
        max_context_len=header.max_context_len,
    )
