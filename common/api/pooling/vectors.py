"""Prompts to vectors through the engines, and what is made of them. Knows no HTTP.

Numbers are float32 as the engine gives them; lengths are taken and sums are done in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeAlias

from common.api.context import RequestInfo
from common.api.generation import Demand, Generation, Prompt, Service
from common.api.pooling.protocol import PoolingFields
from common.api.prompts import truncate
from common.api.protocol import SamplingFields
from common.engine_client import ModelCard
from common.errors import BadRequest, XpydError
from common.request import PooledOutput
from common.text import TextModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# numpy is imported where it is used: most servers never give vectors.
Vector: TypeAlias = "NDArray[np.float32]"


class Vectors:
    """All prompts of one request."""

    def __init__(
        self,
        service: Service,
        info: RequestInfo,
        model: tuple[ModelCard, TextModel],
        ask: PoolingFields,
        prompts: Sequence[Prompt],
        id_prefix: str,
    ) -> None:
        """Raises BadRequest or ContextLengthExceeded; nothing runs before `compute`."""
        fields = SamplingFields.model_validate(
            {
                "truncate_prompt_tokens": ask.truncate_prompt_tokens,
                "truncation_side": ask.truncation_side,
            }
        )
        demand = Demand(
            max_tokens=0,
            default_max_tokens=None,
            choices=1,
            logprobs=None,
            prompt_logprobs=None,
            priority=ask.priority,
            cache_salt=ask.cache_salt,
            timeout_s=ask.timeout_s,
            is_pooled=True,
        )
        shortened = [truncate(prompt, fields, model[0].max_model_len) for prompt in prompts]
        self._generation = Generation(service, info, model, fields, shortened, demand, id_prefix)
        self.id = self._generation.id
        self.created = self._generation.created

    async def compute(self) -> list[Vector]:
        """In the order of the prompts, as the model made them."""
        import numpy as np

        found: dict[int, Vector] = {}
        async with aclosing(self._generation.pieces()) as pieces:
            async for piece in pieces:
                if piece.first is not None and piece.first.vector:
                    found[piece.choice] = np.frombuffer(piece.first.vector, dtype="<f4")
        if len(found) != self._generation.num_choices:
            raise XpydError("the engine gave no vector")
        return [found[number] for number in range(len(found))]

    def usage(self) -> dict[str, int]:
        num_tokens = self._generation.usage.prompt_tokens
        return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def pooled_of(card: ModelCard) -> PooledOutput:
    """What the served model gives. Raises BadRequest if that is text."""
    if card.pooled is None:
        raise BadRequest(
            "this model generates text; start a server with --runner pooling for embeddings, "
            "scores and classes",
            "model",
        )
    return card.pooled


def embedding(vector: Vector, pooled: PooledOutput, dimensions: int | None = None) -> Vector:
    import numpy as np

    shortened = vector if dimensions is None else vector[:dimensions]
    if not pooled.is_normalized:
        return shortened
    return np.asarray(shortened / max(_length(shortened), 1e-12), dtype=np.float32)


def cosine(first: Vector, second: Vector) -> float:
    import numpy as np

    lengths = _length(first) * _length(second)
    product = np.dot(first.astype(np.float64), second.astype(np.float64))
    return float(product / max(lengths, 1e-12))


def probabilities(scores: Vector) -> Vector:
    """Of a classifier's labels; of one with a single label, that one's."""
    import numpy as np

    wide = scores.astype(np.float64)
    if len(wide) == 1:
        return np.asarray(1.0 / (1.0 + np.exp(-wide)), dtype=np.float32)
    powers = np.exp(wide - wide.max())
    return np.asarray(powers / powers.sum(), dtype=np.float32)


def _length(vector: Vector) -> float:
    import numpy as np

    return float(np.linalg.norm(vector.astype(np.float64)))
