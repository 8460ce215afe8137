"""The model as the engine of rank 0 sees it: each forward pass takes all ranks along."""

from __future__ import annotations

import logging

from torch import Tensor

from common.model.inputs import ForwardInputs
from common.model.loader import CausalLM
from common.model.spec import ModelSpec
from common.parallel.pool import own_heads
from common.parallel.processes import RankProcesses
from common.parallel.step_inputs import flatten, header_of

log = logging.getLogger(__name__)


class LedModel:
    def __init__(self, model: CausalLM, ranks: RankProcesses) -> None:
        """`model`: this rank's part."""
        self._model = model
        self._ranks = ranks
        self._shard = ranks.group.shard

    @property
    def spec(self) -> ModelSpec:
        """Of the whole model."""
        return self._model.spec

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        """Logits [rows, vocab] float32. Whatever goes wrong, the ranks are of no more use: one may
        have computed what another has not."""
        try:
            self._ranks.step(header_of(inputs))
            self._ranks.group.broadcast(flatten(inputs))
            return self._model.forward(inputs, own_heads(cache, self._shard, self.spec))
        except Exception as error:
            log.exception("a step of the tensor-parallel ranks failed")
            self._ranks.lost(f"the tensor-parallel ranks lost step ({type(error).__name__})")
            raise
