"""POST /score and /rerank: how well texts go together.

An embedding model compares the texts' embeddings (cosine); a classifier with one label reads both
texts as a pair and scores that.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.context import info_of
from common.api.errors import parse
from common.api.generation import Service
from common.api.pooling.protocol import PoolingFields, RerankRequest, ScoreRequest, Texts
from common.api.pooling.vectors import Vectors, cosine, pooled_of, probabilities
from common.api.prompts import encode_pairs, encode_prompts
from common.api.sse import json_answer
from common.errors import BadRequest

Pair = tuple[str, str]


async def score(service: Service, request: Request) -> Response:
    ask = parse(ScoreRequest, await read_object(request, service.settings))
    scorer = await _Scorer.of(service, request, ask, _pairs(ask), "score")

    async def work() -> dict[str, Any]:
        rows = [
            {"index": n, "object": "score", "score": each}
            for n, each in enumerate(await scorer.compute())
        ]
        return {
            "id": scorer.vectors.id,
            "object": "list",
            "created": scorer.vectors.created,
            "model": scorer.model,
            "data": rows,
            "usage": scorer.vectors.usage(),
        }

    return await json_answer(request, work())


async def rerank(service: Service, request: Request) -> Response:
    ask = parse(RerankRequest, await read_object(request, service.settings))
    pairs = [(ask.query, document) for document in ask.documents]
    scorer = await _Scorer.of(service, request, ask, pairs, "rerank")

    async def work() -> dict[str, Any]:
        scores = await scorer.compute()
        best_first = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
        rows: list[dict[str, Any]] = [
            {"index": n, "relevance_score": scores[n]} for n in best_first[: ask.top_n or None]
        ]
        if ask.return_documents:
            for row in rows:
                row["document"] = {"text": ask.documents[row["index"]]}
        return {
            "id": scorer.vectors.id,
            "model": scorer.model,
            "usage": scorer.vectors.usage(),
            "results": rows,
        }

    return await json_answer(request, work())


def _pairs(ask: ScoreRequest) -> list[Pair]:
    """One with each of several, or one with one."""
    given = (
        ("queries", ask.queries, "documents", ask.documents),
        ("text_1", ask.text_1, "text_2", ask.text_2),
    )
    for name, first, other, second in given:
        if first is not None and second is not None:
            left, right = _listed(first), _listed(second)
            left = left * len(right) if len(left) == 1 else left
            if len(left) != len(right):
                raise BadRequest(f"{name} must be one text, or as many as {other}", name)
            return list(zip(left, right, strict=True))
    raise BadRequest("queries and documents are needed (or text_1 and text_2)", "queries")


def _listed(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


class _Scorer:
    def __init__(self, vectors: Vectors, model: str, places: list[tuple[int, int]] | None) -> None:
        """`places`: of each pair's two texts among the vectors; None: each vector is a pair's."""
        self.vectors = vectors
        self.model = model
        self._places = places

    @staticmethod
    async def of(
        service: Service, request: Request, ask: PoolingFields, pairs: list[Pair], id_prefix: str
    ) -> _Scorer:
        """Raises BadRequest."""
        model, info = service.resolve(ask.model), info_of(request)
        info.name(ask.request_id)
        card, text = model
        pooled = pooled_of(card)
        if len(pooled.labels) > 1:
            raise BadRequest(
                f"this model tells {len(pooled.labels)} classes apart and scores no pairs", "model"
            )
        if pooled.labels:
            prompts = await encode_pairs(pairs, text, info)
            places = None
        else:
            texts = list(dict.fromkeys(each for pair in pairs for each in pair))
            prompts = await encode_prompts(
                texts, "documents", text, info, add_special_tokens=ask.add_special_tokens
            )
            number = {each: n for n, each in enumerate(texts)}
            places = [(number[first], number[second]) for first, second in pairs]
        return _Scorer(Vectors(service, info, model, ask, prompts, id_prefix), card.name, places)

    async def compute(self) -> list[float]:
        found = await self.vectors.compute()
        if self._places is None:
            return [float(probabilities(each)[0]) for each in found]
        return [cosine(found[first], found[second]) for first, second in self._places]
