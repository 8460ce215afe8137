"""A model without weights whose next token depends on every token of the context, *as read from the
KV cache*: a wrong block, slot, position or block table changes the answer.

K of a token is (token id, position), V the same negated. The logits after a context are a hash of
it.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from common.engine.engine import Engine, EngineSettings
from common.engine.kv_cache import KVCache, KVLayout
from common.model.inputs import ForwardInputs
from common.model.spec import ModelSpec
from common.request import EngineRequest, SamplingParams, TokenEvent

T = TypeVar("T")

MASK = (1 << 64) - 1


def standin_spec(vocab_size: int = 97, max_model_len: int = 256) -> ModelSpec:
    return ModelSpec(
        architecture="StandIn",
        dtype="float32",
        vocab_size=vocab_size,
        hidden_size=2,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        max_model_len=max_model_len,
        tied_embeddings=False,
        eos_token_ids=(),
        bos_token_id=None,
    )


def context_logits(tokens: list[int], vocab_size: int) -> np.ndarray:
    """What the model says after these tokens: [vocab] float32 in [-8, 8)."""
    state = 0x9E3779B97F4A7C15
    for token in tokens:
        state = ((state ^ (token + 1)) * 0xBF58476D1CE4E5B9) & MASK
        state ^= state >> 31
    words = (
        np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)
    ) ^ np.uint64(state)
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xD6E8FEB86659FD93)
    return ((words >> np.uint64(40)).astype(np.float32) / (1 << 20) - 8).astype(np.float32)


class StandInModel:
    def __init__(self, spec: ModelSpec | None = None) -> None:
        self.spec = spec or standin_spec()
        self.poison: set[int] = set()  # a context that holds one of these ids gives NaN
        self.num_tokens = 0  # computed so far

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        block_size = cache.shape[4]
        k, v = cache[:, 0, 0, 0], cache[:, 0, 1, 0]  # [blocks, block_size, 2]
        values = torch.stack([inputs.token_ids, inputs.positions], dim=-1).float()
        blocks, offsets = inputs.slots // block_size, inputs.slots % block_size
        k[blocks, offsets] = values
        v[blocks, offsets] = -values
        self.num_tokens += len(inputs.token_ids)
        rows = [self._row(inputs, int(row), k, v) for row in inputs.logits_rows]
        if not rows:
            return torch.empty(0, self.spec.vocab_size)
        return torch.from_numpy(np.stack(rows))

    def _row(self, inputs: ForwardInputs, row: int, k: Tensor, v: Tensor) -> np.ndarray:
        i = int(np.searchsorted(inputs.cu_seqlens.numpy(), row, side="right")) - 1
        from_end = int(inputs.cu_seqlens[i + 1]) - 1 - row
        length = int(inputs.context_lens[i]) - from_end
        table = inputs.block_tables[i].long()
        keys = k[table].reshape(-1, 2)[:length]
        assert torch.equal(keys, -v[table].reshape(-1, 2)[:length])
        assert keys[:, 1].tolist() == list(range(length)), "positions in the cache are wrong"
        tokens = [int(token) for token in keys[:, 0]]
        if self.poison.intersection(tokens):
            return np.full(self.spec.vocab_size, np.nan, dtype=np.float32)
        return context_logits(tokens, self.spec.vocab_size)


def must(value: T | None) -> T:
    """What the test relies on getting."""
    assert value is not None
    return value


def greedy_answer(prompt: list[int], num_tokens: int, vocab_size: int = 97) -> list[int]:
    """The oracle: no engine, no cache."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(context_logits(tokens, vocab_size).argmax()))
    return tokens[len(prompt) :]


def make_engine(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    model: StandInModel | None = None,
    eos: tuple[int, ...] = (),
    is_overlapped: bool = False,
    **settings: int | bool,
) -> Engine:
    """`clock` stands still unless a test passes its own to Engine."""
    model = model or StandInModel()
    limits: dict[str, int | bool] = {
        "max_model_len": min(64, num_blocks * block_size),
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
    }
    cache = KVCache(KVLayout.of(model.spec, block_size), num_blocks, torch.device("cpu"))
    options = EngineSettings(**(limits | settings))  # type: ignore[arg-type]
    return Engine(model, cache, options, eos, "standin", is_overlapped=is_overlapped)


def make_request(
    request_id: str,
    prompt: list[int],
    max_tokens: int = 8,
    *,
    outputs: tuple[int, ...] = (),
    priority: int = 0,
    salt: str = "",
    temperature: float = 0.0,
    **sampling: object,
) -> EngineRequest:
    params = SamplingParams(max_tokens, temperature=temperature, **sampling)  # type: ignore[arg-type]
    return EngineRequest(request_id, tuple(prompt), params, outputs, priority, salt)


def run(engine: Engine, max_steps: int = 10_000) -> dict[str, list[TokenEvent]]:
    """Step until there is no work; events by request. Fails on a request that failed."""
    events: dict[str, list[TokenEvent]] = {}
    for _ in range(max_steps):
        if not engine.has_work():
            return events
        result = engine.step()
        assert not result.failed, result.failed
        for event in result.events:
            events.setdefault(event.request_id, []).append(event)
    raise AssertionError(f"still at work after {max_steps} steps: {engine.ledger()}")


def tokens_of(events: list[TokenEvent]) -> list[int]:
    """Joined tokens; checks that indices fit and that exactly the last event is terminal."""
    tokens: list[int] = []
    for event in events:
        assert event.index == events[0].index + len(tokens)
        tokens += event.token_ids
    assert [event.finish_reason is not None for event in events] == [False] * (len(events) - 1) + [
        True
    ]
    return tokens
