"""POST /v1/embeddings, /pooling and /classify: a vector for each text."""

from __future__ import annotations

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.context import info_of
from common.api.errors import parse
from common.api.generation import Service
from common.api.pooling.protocol import ClassifyRequest, EmbeddingRequest, PoolingRequest
from common.api.pooling.vectors import Vector, Vectors, embedding, pooled_of, probabilities
from common.api.prompts import encode_prompts
from common.api.sse import json_answer
from common.errors import BadRequest
from common.request import PooledOutput

Input = EmbeddingRequest | PoolingRequest | ClassifyRequest


async def create_embeddings(service: Service, request: Request) -> Response:
    ask = parse(EmbeddingRequest, await read_object(request, service.settings))
    card, _ = service.resolve(ask.model)
    pooled = _embeds(pooled_of(card))
    _check_dimensions(ask.dimensions, pooled)
    vectors = await _vectors(service, request, ask, "embd")

    async def work() -> dict[str, Any]:
        found = [embedding(each, pooled, ask.dimensions) for each in await vectors.compute()]
        rows = [
            {"object": "embedding", "index": n, "embedding": _shown(each, ask.encoding_format)}
            for n, each in enumerate(found)
        ]
        return {"object": "list", "data": rows, "model": card.name, "usage": vectors.usage()}

    return await json_answer(request, work())


async def pool(service: Service, request: Request) -> Response:
    ask = parse(PoolingRequest, await read_object(request, service.settings))
    card, _ = service.resolve(ask.model)
    pooled = pooled_of(card)
    if ask.task == "embed":
        _embeds(pooled)
    if ask.task == "classify":
        _classifies(pooled)
    vectors = await _vectors(service, request, ask, "pool")

    async def work() -> dict[str, Any]:
        found = await vectors.compute()
        shown = [probabilities(v) if pooled.labels else embedding(v, pooled) for v in found]
        rows = [
            {"object": "pooling", "index": n, "data": _shown(each, ask.encoding_format)}
            for n, each in enumerate(shown)
        ]
        return _list(vectors, card.name, rows)

    return await json_answer(request, work())


async def classify(service: Service, request: Request) -> Response:
    ask = parse(ClassifyRequest, await read_object(request, service.settings))
    card, _ = service.resolve(ask.model)
    pooled = _classifies(pooled_of(card))
    vectors = await _vectors(service, request, ask, "classify")

    async def work() -> dict[str, Any]:
        found = [probabilities(each) for each in await vectors.compute()]
        rows = [
            {
                "index": n,
                "label": pooled.labels[int(each.argmax())],
                "probs": each.tolist(),
                "num_classes": len(pooled.labels),
            }
            for n, each in enumerate(found)
        ]
        return _list(vectors, card.name, rows)

    return await json_answer(request, work())


async def _vectors(service: Service, request: Request, ask: Input, id_prefix: str) -> Vectors:
    model, info = service.resolve(ask.model), info_of(request)
    info.name(ask.request_id)
    prompts = await encode_prompts(
        ask.input, "input", model[1], info, add_special_tokens=ask.add_special_tokens
    )
    return Vectors(service, info, model, ask, prompts, id_prefix)


def _list(vectors: Vectors, model: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": vectors.id,
        "object": "list",
        "created": vectors.created,
        "model": model,
        "data": rows,
        "usage": vectors.usage(),
    }


def _shown(vector: Vector, encoding_format: str) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.astype("<f8").tolist()
    return numbers


def _embeds(pooled: PooledOutput) -> PooledOutput:
    if pooled.labels:
        raise BadRequest("this model is a classifier; it has no embeddings: use /classify", "model")
    return pooled


def _classifies(pooled: PooledOutput) -> PooledOutput:
    if not pooled.labels:
        raise BadRequest("this model gives embeddings, no classes: use /v1/embeddings", "model")
    return pooled


def _check_dimensions(asked: int | None, pooled: PooledOutput) -> None:
    if asked is None or asked == pooled.num_values:
        return
    if not pooled.can_shorten:
        raise BadRequest(
            f"dimensions: this model's embeddings have {pooled.num_values} numbers and were not "
            "trained to be shortened; leave it out",
            "dimensions",
        )
    if asked > pooled.num_values:
        raise BadRequest(f"dimensions: at most {pooled.num_values} with this model", "dimensions")
