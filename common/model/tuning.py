"""Before the first request on a GPU: the fastest kernel shapes for this model's batches.

Measured on the model's own weights and cache the first time, read from a file afterwards. Decode
batches are measured at a thousand tokens of context, a prefill chunk alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from common.model.llama import Llama
from kernels.gpu.attention import tune_attention
from kernels.gpu.linear import FEW_ROWS, tune_linear
from kernels.gpu.tuning import Tuner

_CONTEXT = 1024

log = logging.getLogger(__name__)


def tune_kernels(
    model: Llama, cache: Tensor, max_num_seqs: int, max_num_tokens: int, tuner: Tuner
) -> None:
    """
    cache:           [blocks, layers, 2, kv_heads, block_size, head_dim]; nothing in it is changed
    max_num_seqs:    sequences in one step
    max_num_tokens:  tokens in one step
    """
    began = time.monotonic()
    for window in model.windows:
        for size in _powers(max_num_seqs):
            _tune_batch(model, cache, size, 1, _CONTEXT, window, tuner)
        length = min(max_num_tokens, model.spec.max_model_len)
        _tune_batch(model, cache, 1, length, length, window, tuner)
    for weight in model.quantized_weights:
        assert weight.scales is not None
        for rows in _powers(min(max_num_seqs, FEW_ROWS)):
            x = torch.zeros(rows, weight.in_features, dtype=weight.dtype, device=cache.device)
            tune_linear(tuner, x, weight.data, weight.scales)
    tuner.save()
    if tuner.num_measured:
        seconds = time.monotonic() - began
        log.info("kernels tuned to this GPU in %.1f s; kept for the next start", seconds)


def _tune_batch(
    model: Llama,
    cache: Tensor,
    num_seqs: int,
    num_queries: int,
    context: int,
    window: int | None,
    tuner: Tuner,
) -> None:
    """num_seqs sequences of `context` tokens, the last num_queries of which are computed."""
    num_blocks, _, _, kv_heads, block_size, head_dim = cache.shape
    context = min(context, model.spec.max_model_len, num_blocks * block_size)
    num_queries = min(num_queries, context)
    per_seq = -(-context // block_size)
    tables = torch.arange(num_seqs * per_seq, device=cache.device) % num_blocks
    heads = kv_heads * (model.spec.num_heads // model.spec.num_kv_heads)
    dtype = getattr(torch, model.spec.dtype)
    tune_attention(
        tuner,
        torch.zeros(num_seqs * num_queries, heads, head_dim, dtype=dtype, device=cache.device),
        cache[:, 0, 0],
        cache[:, 0, 1],
        tables.to(torch.int32).view(num_seqs, per_seq),
        torch.arange(num_seqs + 1, dtype=torch.int32, device=cache.device) * num_queries,
        torch.full((num_seqs,), context, dtype=torch.int32, device=cache.device),
        window,
        num_queries,
        context,
    )


def _powers(largest: int) -> Iterator[int]:
    """1, 2, 4, … up to the first that is not smaller."""
    power = 1
    while power < largest:
        yield power
        power *= 2
    yield largest
