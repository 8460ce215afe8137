"""What graphs replay, without a GPU: the padded inputs give the rows that the plain ones give."""

import dataclasses
from pathlib import Path

import pytest
import torch

from common.model.cuda_graphs import PaddedInputs, batch_sizes, is_decode
from common.model.loader import load_model
from common.model.step_memory import one_chunk

DEMO = Path(__file__).parents[3] / "models" / "xpyd-demo"


def test_batch_sizes_end_with_the_largest_batch():
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(20) == [1, 2, 4, 8, 16, 20]


@pytest.fixture
def model():
    return load_model(DEMO, dtype="float32", device=torch.device("cpu"))


def prefilled(model, lengths, block_size=16):
    """A cache with sequences of these lengths in it, and the decode step that comes next."""
    spec = model.spec
    num_blocks = sum(length // block_size + 1 for length in lengths)
    shape = (num_blocks, spec.num_layers, 2, spec.num_kv_heads, block_size, spec.head_dim)
    cache = torch.zeros(shape)
    tables = torch.zeros(len(lengths), max(lengths) // block_size + 1, dtype=torch.int32)
    first = 0
    for row, length in enumerate(lengths):
        count = length // block_size + 1
        blocks = torch.arange(first, first + count, dtype=torch.int32)
        tables[row, :count] = blocks
        chunk = one_chunk(length, 1, block_size, torch.device("cpu"))
        chunk = dataclasses.replace(
            chunk,
            token_ids=torch.arange(length) % 100 + 5 * row,
            slots=chunk.slots + first * block_size,
            block_tables=blocks[None],
        )
        model.forward(chunk, cache)
        first += count
    positions = torch.tensor(lengths)
    rows = torch.arange(len(lengths))
    step = dataclasses.replace(
        chunk,
        token_ids=rows + 40,
        positions=positions,
        slots=tables[rows, positions // block_size].long() * block_size + positions % block_size,
        cu_seqlens=torch.arange(len(lengths) + 1, dtype=torch.int32),
        context_lens=(positions + 1).to(torch.int32),
        block_tables=tables,
        logits_rows=rows,
        max_query_len=1,
        max_context_len=max(lengths) + 1,
    )
    return cache, step


def test_padded_decode_steps_give_the_same_rows(model):
    cache, step = prefilled(model, [20, 3, 33])
    padded = PaddedInputs(8, 64, 1024, torch.device("cpu"))
    _, crowd = prefilled(model, [5] * 8)
    padded.fill(crowd, 8)  # what an earlier step left behind
    padded.fill(step, 4)
    inputs = padded.first(4)
    assert is_decode(step) and is_decode(inputs)
    before = cache.clone()
    logits = model.forward(inputs, cache)[:3]
    plain_cache = before.clone()
    assert torch.equal(logits, model.forward(step, plain_cache))
    assert torch.equal(cache, plain_cache)  # the padding has written nothing


def test_prefill_is_no_decode_step():
    assert not is_decode(one_chunk(4, 1, 16, torch.device("cpu")))
