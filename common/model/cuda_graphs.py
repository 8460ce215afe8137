"""Decode steps replayed as CUDA graphs: one launch per step instead of several hundred.

A graph belongs to a batch size; a smaller batch is padded with rows that read one token of block 0
and write nowhere. Anything but a pure decode step, or one with adapters, runs as it is. Knows no
requests.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor

from common.model.inputs import ForwardInputs
from common.model.loader import CausalLM
from common.model.spec import ModelSpec

_SMALL = (1, 2, 4)
_STEP = 8  # batch sizes are multiples of it, from there on
_NOWHERE = -1  # a slot that is not written

log = logging.getLogger(__name__)


def batch_sizes(max_num_seqs: int) -> list[int]:
    """Ascending; the last is max_num_seqs, so that no decode step is without a graph."""
    sizes = [*_SMALL, *range(_STEP, max_num_seqs, _STEP), max_num_seqs]
    return sorted({size for size in sizes if size <= max_num_seqs})


def is_decode(inputs: ForwardInputs) -> bool:
    """One token per sequence, logits of each, and the model's own weights only."""
    num_seqs = len(inputs.context_lens)
    if inputs.adapters:
        return False
    return inputs.max_query_len == 1 and len(inputs.logits_rows) == num_seqs > 0


class PaddedInputs:
    """Tensors that stay where they are, so that a graph finds each step's inputs in them."""

    def __init__(
        self, max_num_seqs: int, max_blocks: int, max_model_len: int, device: torch.device
    ) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._max_model_len = max_model_len
        self._token_ids = zeros(max_num_seqs, dtype=torch.int64)
        self._positions = zeros(max_num_seqs, dtype=torch.int64)
        self._slots = zeros(max_num_seqs, dtype=torch.int64).fill_(_NOWHERE)
        self._context_lens = zeros(max_num_seqs, dtype=torch.int32).fill_(1)
        self._block_tables = zeros(max_num_seqs, max_blocks, dtype=torch.int32)
        self._cu_seqlens = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(max_num_seqs, dtype=torch.int64, device=device)

    def first(self, size: int) -> ForwardInputs:
        """The inputs of `size` sequences, whatever `fill` has put there."""
        return ForwardInputs(
            token_ids=self._token_ids[:size],
            positions=self._positions[:size],
            slots=self._slots[:size],
            cu_seqlens=self._cu_seqlens[: size + 1],
            context_lens=self._context_lens[:size],
            block_tables=self._block_tables[:size],
            logits_rows=self._rows[:size],
            max_query_len=1,
            max_context_len=self._max_model_len,
        )

    def fill(self, inputs: ForwardInputs, size: int) -> None:
        """A decode step of up to `size` sequences; the other rows read a token nobody asks for."""
        count, width = inputs.block_tables.shape
        self._token_ids[:count].copy_(inputs.token_ids)
        self._positions[:count].copy_(inputs.positions)
        self._slots[:count].copy_(inputs.slots)
        self._context_lens[:count].copy_(inputs.context_lens)
        self._block_tables[:count, :width].copy_(inputs.block_tables)
        if count < size:
            self._slots[count:size].fill_(_NOWHERE)
            self._context_lens[count:size].fill_(1)


class GraphedModel:
    """A model whose decode steps are replayed. It is bound to the cache it was captured with."""

    def __init__(self, model: CausalLM, cache: Tensor, max_num_seqs: int) -> None:
        """Captures all graphs: the log says when, as it takes seconds.

        cache: [blocks, layers, 2, kv_heads, block_size, head_dim] on a CUDA device
        """
        self._model = model
        self._cache = cache
        self._sizes = batch_sizes(max_num_seqs)
        spec = model.spec
        max_blocks = -(-spec.max_model_len // cache.shape[4])
        self._inputs = PaddedInputs(max_num_seqs, max_blocks, spec.max_model_len, cache.device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        began = time.monotonic()
        with torch.inference_mode():
            pool = torch.cuda.graph_pool_handle()
            for size in reversed(self._sizes):  # the largest first: the others fit into its memory
                self._graphs[size] = self._capture(size, pool)
        seconds = time.monotonic() - began
        log.info("%d CUDA graphs of decode steps captured in %.1f s", len(self._sizes), seconds)

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """Logits [rows, vocab] float32, valid until the next call."""
        assert cache.data_ptr() == self._cache.data_ptr(), "captured with another cache"
        count = len(inputs.context_lens)
        if not is_decode(inputs) or count > self._sizes[-1]:
            return self._model.forward(inputs, cache)
        size = next(size for size in self._sizes if size >= count)
        self._inputs.fill(inputs, size)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:count]

    def _capture(self, size: int, pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        inputs = self._inputs.first(size)
        stream = torch.cuda.Stream(self._cache.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._cache.device))
        with torch.cuda.stream(stream):
            self._model.forward(inputs, self._cache)  # compiles kernels, sets up cuBLAS
        torch.cuda.current_stream(self._cache.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = self._model.forward(inputs, self._cache)
        return graph, logits
