"""How much memory the largest step takes beside weights and KV cache: measured by running it."""

from __future__ import annotations

import torch

from common.model.inputs import ForwardInputs
from common.model.loader import CausalLM

_SAMPLER_COPIES = 4  # of the float32 logits, when every row draws with top_p


def one_chunk(
    num_tokens: int, num_logits: int, block_size: int, device: torch.device
) -> ForwardInputs:
    """A first prefill chunk of one sequence in blocks 0, 1, 2, …; logits of its last tokens."""
    positions = torch.arange(num_tokens, device=device)
    blocks = torch.arange(-(-num_tokens // block_size), dtype=torch.int32, device=device)
    return ForwardInputs(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        slots=positions.clone(),
        cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_tables=blocks[None],
        logits_rows=positions[num_tokens - num_logits :],
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )


def peak_step_bytes(
    model: CausalLM,
    block_shape: tuple[int, ...],
    dtype: torch.dtype,
    num_tokens: int,
    num_seqs: int,
) -> int:
    """Bytes on the current CUDA device for a step of num_tokens that samples num_seqs.

    block_shape: [layers, 2, kv_heads, block_size, head_dim]
    """
    device = torch.device("cuda", torch.cuda.current_device())
    inputs = one_chunk(num_tokens, min(num_seqs, num_tokens), block_shape[3], device)
    num_blocks = inputs.block_tables.shape[1]
    cache = torch.zeros((num_blocks, *block_shape), dtype=dtype, device=device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        logits = model.forward(inputs, cache)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    sampling = _SAMPLER_COPIES * num_seqs * logits.shape[1] * 4
    del cache, logits, inputs
    torch.cuda.empty_cache()
    return peak + sampling
