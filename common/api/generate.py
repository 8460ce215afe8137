"""POST /inference/v1/generate: tokens in, tokens out, for routers; and aborting such requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.choices import Piece
from common.api.constraints import constraint_of
from common.api.context import clean_label, info_of
from common.api.errors import parse
from common.api.generation import Answer, Demand, Generation, Prompt, Service, collect
from common.api.logprobs import generate_logprobs, prompt_logprobs
from common.api.prompts import truncate
from common.api.protocol import AbortRequest, GenerateRequest
from common.api.refusals import GENERATE, refuse
from common.api.running import Running
from common.api.sampling import check_token_ids
from common.api.sse import ChunkWriter, EventStream, json_answer
from common.errors import BadRequest


async def generate(running: Running, service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    refuse(body, GENERATE)
    if isinstance(body.get("sampling_params"), dict):
        refuse(body["sampling_params"], GENERATE)
    ask = parse(GenerateRequest, body)
    fields = ask.sampling_params
    if ask.stream and fields.prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs are not given in a stream", "prompt_logprobs")
    model = service.resolve(ask.model)
    card, text = model
    check_token_ids(ask.token_ids, "token_ids", text)
    demand = Demand(
        max_tokens=fields.max_tokens,
        default_max_tokens=None,
        choices=fields.n,
        logprobs=fields.logprobs,
        prompt_logprobs=fields.prompt_logprobs,
        priority=ask.priority,
        cache_salt=ask.cache_salt,
        timeout_s=ask.timeout_s,
        constraint=constraint_of(fields),
    )
    info = info_of(request)
    info.name(ask.request_id)
    prompts = [truncate(Prompt(tuple(ask.token_ids)), fields, card.max_model_len)]
    generation = Generation(service, info, model, fields, prompts, demand, "gen")
    label = clean_label(ask.request_id) or generation.id
    answer = _Generated(ask, generation, label)
    aborted = running.watch(info.tenant, label)
    if ask.stream:
        limit = service.settings.stalled_reader_s
        return EventStream(request, answer.stream(), limit, aborted)
    return await json_answer(request, answer.complete(), aborted)


async def abort_requests(service: Service, running: Running, request: Request) -> Response:
    ask = parse(AbortRequest, await read_object(request, service.settings))
    for label in ask.request_ids:
        running.abort(info_of(request).tenant, clean_label(label))
    return Response(status_code=200)


class _Generated:
    """The answers of one request in either form."""

    def __init__(self, ask: GenerateRequest, generation: Generation, label: str) -> None:
        self._ask = ask
        self._generation = generation
        self._envelope = {
            "request_id": label,
            "model": generation.card.name,
            "created": generation.created,
            "output_mode": ask.output_mode,
        }

    async def complete(self) -> dict[str, Any]:
        generation = self._generation
        answers = await collect(generation)
        body = {
            **self._envelope,
            "choices": [self._choice(n, answer) for n, answer in enumerate(answers)],
            "usage": generation.usage.body(),
        }
        num_top = self._ask.sampling_params.prompt_logprobs
        if num_top is not None:
            body["prompt_logprobs"] = prompt_logprobs(
                generation.text.vocabulary,
                generation.prompts[0].token_ids,
                answers[0].prompt_logprobs,
                num_top,
            )
        return body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        usage, timings = self._generation.usage.body, self._generation.timings
        chunks = ChunkWriter(self._envelope, self._ask.stream_options, usage, timings)
        async with aclosing(self._generation.pieces()) as pieces:
            async for piece in pieces:
                yield chunks.chunk(self._choice(piece.choice, piece))
        if data := chunks.last():
            yield data

    def _choice(self, number: int, of: Answer | Piece) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": number,
            "token_ids": of.token_ids,
            "logprobs": None,
            "finish_reason": of.finish_reason,
            "stop_reason": of.stop_reason,
        }
        if self._ask.output_mode == "text":
            choice["text"] = of.text
        if self._ask.sampling_params.logprobs is not None:
            choice["logprobs"] = {"content": generate_logprobs(of.token_ids, of.logprobs)}
        return choice
