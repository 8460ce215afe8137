"""Test support: runs a `CausalLM` over `ForwardInputs` as an engine would, in random blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.model.inputs import ForwardInputs
from common.model.loader import CausalLM
from common.model.lora.adapter import Adapter, AdapterRows


@dataclass
class PagedSequence:
    """Tokens so far, how many of them are in cache, and where."""

    tokens: list[int]
    table: list[int] = field(default_factory=list)
    computed: int = 0
    adapter: Adapter | None = None


def random_cache(
    model: CausalLM, num_blocks: int, block_size: int, generator: torch.Generator
) -> Tensor:
    """A cache full of stale values: reading one that was never written shows in the logits."""
    spec = model.spec
    shape = (num_blocks, spec.num_layers, 2, spec.num_kv_heads, block_size, spec.head_dim)
    cache = torch.randn(shape, generator=generator) * 30
    return cache.to(getattr(torch, spec.dtype))


class PagedDriver:
    """Hands out blocks in random order and builds the inputs of each step."""

    def __init__(
        self, model: CausalLM, num_blocks: int = 256, block_size: int = 4, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        self.block_size = block_size
        self.cache = random_cache(model, num_blocks, block_size, generator)
        self._free = torch.randperm(num_blocks, generator=generator).tolist()

    def add(
        self,
        tokens: list[int],
        prefix_of: PagedSequence | None = None,
        adapter: Adapter | None = None,
    ) -> PagedSequence:
        """A new sequence; with `prefix_of` it shares that one's full blocks of equal tokens."""
        sequence = PagedSequence(list(tokens), adapter=adapter)
        if prefix_of is not None:
            shared = 0
            while (shared + 1) * self.block_size < len(tokens) and (
                tokens[: (shared + 1) * self.block_size]
                == prefix_of.tokens[: (shared + 1) * self.block_size]
            ):
                shared += 1
            sequence.table = prefix_of.table[:shared]
            sequence.computed = shared * self.block_size
        return sequence

    def step(self, work: list[tuple[PagedSequence, int]], every_row: bool = True) -> list[Tensor]:
        """Compute the next n tokens of each sequence in one batch.

        Returns per sequence its logits [n, vocab], or [1, vocab] of the last without `every_row`.
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        rows: list[int] = []
        for sequence, count in work:
            end = sequence.computed + count
            while len(sequence.table) * self.block_size < end:
                sequence.table.append(self._free.pop())
            for position in range(sequence.computed, end):
                ids.append(sequence.tokens[position])
                positions.append(position)
                block = sequence.table[position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
            starts.append(len(ids))
            rows.extend(range(starts[-2] if every_row else starts[-1] - 1, starts[-1]))
            sequence.computed = end
        width = max(len(sequence.table) for sequence, _ in work)
        tables = [sequence.table + [0] * (width - len(sequence.table)) for sequence, _ in work]
        inputs = ForwardInputs(
            token_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            cu_seqlens=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor([s.computed for s, _ in work], dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            logits_rows=torch.tensor(rows),
            max_query_len=max(count for _, count in work),
            max_context_len=max(s.computed for s, _ in work),
            adapters=_adapter_rows(work, starts),
        )
        logits = self.model.forward(inputs, self.cache)
        counts = [count if every_row else 1 for _, count in work]
        return list(torch.split(logits, counts))

    def run(self, tokens: list[int], chunks: list[int], adapter: Adapter | None = None) -> Tensor:
        """Logits [tokens, vocab] of one sequence alone, its prompt cut into `chunks`."""
        assert sum(chunks) == len(tokens)
        sequence = self.add(tokens, adapter=adapter)
        return torch.cat([self.step([(sequence, count)])[0] for count in chunks])

    def greedy(self, prompt: list[int], count: int, adapter: Adapter | None = None) -> list[int]:
        """The next `count` tokens, by argmax."""
        sequence = self.add(prompt, adapter=adapter)
        todo = len(prompt)
        for _ in range(count):
            (logits,) = self.step([(sequence, todo)], every_row=False)
            sequence.tokens.append(int(logits[-1].argmax()))
            todo = 1
        return sequence.tokens[len(prompt) :]


def _adapter_rows(
    work: list[tuple[PagedSequence, int]], starts: list[int]
) -> tuple[AdapterRows, ...]:
    """One sequence after the other, in no clever order."""
    return tuple(
        AdapterRows(sequence.adapter, slice(first, end))
        for (sequence, _), first, end in zip(work, starts, starts[1:], strict=False)
        if sequence.adapter is not None
    )
