"""From a plan to a step in flight: the batch, the forward pass, the choice of tokens.

Knows which tensors a step needs and nothing of who asked for it.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from common.engine.batch import BatchBuilder
from common.engine.flight import Flight, is_foreseeable
from common.engine.interface import EngineSettings
from common.engine.kv_cache import KVCache
from common.engine.pooler import Pooler
from common.engine.prompt_logprobs import take_prompt_logprobs
from common.engine.sampler import DeviceSamples, Sampler
from common.engine.scheduler import Plan
from common.engine.sequence import Sequence
from common.model.inputs import ForwardInputs
from common.model.spec import ModelSpec


class Model(Protocol):
    """What an engine needs of a model (common/model/loader.py has the real ones)."""

    @property
    def spec(self) -> ModelSpec: ...

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """Store K and V in `cache`; return float32 logits [rows, vocab], the engine's to edit."""
        ...


class Runner:
    def __init__(
        self,
        model: Model,
        cache: KVCache,
        settings: EngineSettings,
        eos_token_ids: frozenset[int],
        *,
        is_overlapped: bool,
    ) -> None:
        """is_overlapped: tokens stay on the device until somebody asks for them, where possible."""
        self._model = model
        self._cache = cache
        self._is_overlapped = is_overlapped
        self._sampler = Sampler(eos_token_ids, cache.device)
        max_blocks = -(-settings.max_model_len // cache.block_size)
        self._batch = BatchBuilder(
            settings.max_num_seqs, max_blocks, cache.block_size, cache.device
        )

    def prepare(self, sequence: Sequence) -> None:
        """Once per sequence, before its first step."""
        self._sampler.prepare(sequence)

    def release(self, sequence: Sequence) -> None:
        """It leaves. Idempotent."""
        self._batch.release(sequence)

    def launch(self, plan: Plan) -> Flight:
        inputs = self._batch.build(plan)
        logits = self._model.forward(inputs, self._cache.tensor)
        logits = take_prompt_logprobs(plan, logits)
        sampled = [s for s, count in plan.chunks if count == s.num_tokens - s.num_computed]
        num_tokens = len(inputs.token_ids)
        if self._is_overlapped and sampled and all(is_foreseeable(s) for s in sampled):
            chosen = self._sampler.choose(logits, sampled, num_ahead=0)
            return Flight(plan, sampled, num_tokens, chosen)
        return Flight(plan, sampled, num_tokens, self._sampler.sample(logits, sampled))

    def launch_behind(self, flight: Flight, plan: Plan) -> Flight:
        """The step after `flight`, whose tokens nobody has seen (`Flight.is_on_device`).

        plan: from `Scheduler.ahead`
        """
        sampled = [chunk.sequence for chunk in plan.chunks]
        inputs = self._batch.build(plan, flight.tokens_of(sampled))
        logits = self._model.forward(inputs, self._cache.tensor)
        chosen: DeviceSamples = self._sampler.choose(logits, sampled, num_ahead=1)
        size = self._cache.block_size
        targets = {s.request_id: s.block_ids[s.num_tokens // size] for s in sampled}
        return Flight(plan, sampled, len(sampled), chosen, targets)

    def pool(self, plan: Plan, pooler: Pooler) -> tuple[int, list[bytes]]:
        """Of a model that gives vectors: how many tokens were computed, and a vector for each chunk
        that ends its prompt, in order."""
        inputs = self._batch.build(plan)
        hidden = self._model.forward(inputs, self._cache.tensor)
        return len(inputs.token_ids), pooler.take(plan, hidden)
