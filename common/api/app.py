"""The HTTP app: which path leads where. Mounted in the proxy and in every instance alike.

app = create_app(client, texts, Metrics(model_name="demo"), ApiSettings())
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from common.admission.admission import Admission, Unlimited
from common.admission.rate_limit import Buckets
from common.admission.watch import watch_admission
from common.api import protocol
from common.api.anthropic.endpoints import count_tokens, create_message
from common.api.anthropic.errors import is_messages_path, messages_error
from common.api.anthropic.protocol import CountTokensRequest, MessagesRequest
from common.api.chat import create_chat_completion
from common.api.completions import create_completion
from common.api.context import info_of
from common.api.direct import Direct
from common.api.errors import error_response, http_error
from common.api.external_router import HandOvers, routed
from common.api.gate import Gate
from common.api.generate import abort_requests, generate
from common.api.generation import Service
from common.api.invocations import invoke
from common.api.limits import RATE_HEADERS, Limiter
from common.api.observe import RequestMetrics
from common.api.openapi import describe
from common.api.pooling.endpoints import classify, create_embeddings, pool
from common.api.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from common.api.pooling.scores import rerank, score
from common.api.responses.endpoints import Responses
from common.api.responses.protocol import ResponseRequest, TokenCountRequest
from common.api.running import Running
from common.api.settings import ApiSettings
from common.api.sse import encode_json
from common.api.tokens import detokenize, tokenize, tokenizer_info
from common.engine_client import EngineClient, ModelCard
from common.errors import ModelNotFound, Unavailable, XpydError
from common.metrics import CONTENT_TYPE, Metrics
from common.text import TextModel

__all__ = ["ApiSettings", "create_app"]

Endpoint = Callable[[Request], Awaitable[Response]]
ServiceEndpoint = Callable[[Service, Request], Awaitable[Response]]
Posts = dict[str, Endpoint]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def create_app(
    client: EngineClient,
    texts: Callable[[str], TextModel],
    metrics: Metrics,
    settings: ApiSettings,
    lifespan: Lifespan | None = None,
    admission: Admission | None = None,
    observed: RequestMetrics | None = None,
    hand_overs: HandOvers | None = None,
    buckets: Buckets | None = None,
) -> FastAPI:
    """`texts`: the text side of a served model, by the name on its card. `admission`: who may come
    in and when; by default everybody, at once. `observed`: made of `metrics`, by a caller who
    reads it, too. `hand_overs`: for routers of others; None refuses what they send. `buckets`: of
    rates, where other processes keep the same."""
    observed = observed or RequestMetrics(metrics)
    admission = admission or Admission(Unlimited())
    watch_admission(metrics, admission)
    limiter = Limiter(settings.ring.terms_of, settings.rates, buckets=buckets)
    service = Service(client, texts, observed, settings, admission, limiter)
    responses = Responses(service)
    app = FastAPI(
        title="xpyd",
        version=settings.version,
        lifespan=_lifespan(responses, lifespan),
        redirect_slashes=False,
        exception_handlers={HTTPException: _on_http_exception},
    )
    posts = _add_generation(app, service, hand_overs) | {"/v1/responses": responses.create}
    app.add_middleware(Direct, posts=posts)  # the innermost
    app.add_middleware(Gate, settings=settings, on_refusal=observed.rejected, answer=_as_error)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Server-Timing", "Retry-After", *RATE_HEADERS],
        )
    _add_pooling(app, service)
    _add_responses(app, responses)
    _add_models(app, service)
    _add_operations(app, service, metrics)
    return app


def _lifespan(responses: Responses, outer: Lifespan | None) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with responses.running(), outer(app) if outer else nullcontext() as state:
            yield state

    return lifespan


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _as_error(http_error(request, error), request.url.path)


def _as_error(error: XpydError, path: str) -> Response:
    """In the form that the clients of `path` read."""
    return messages_error(error) if is_messages_path(path) else error_response(error)


def _add_generation(app: FastAPI, service: Service, hand_overs: HandOvers | None) -> Posts:
    """The endpoints that may also be answered directly."""
    running = Running()
    chat, completion = protocol.ChatRequest, protocol.CompletionRequest
    routed_chat = routed(create_chat_completion, hand_overs)
    routed_completion = routed(create_completion, hand_overs)
    generating = routed(partial(generate, running), hand_overs)
    posts: Posts = {}
    for path, endpoint, bodies in (
        ("/v1/chat/completions", routed_chat, [chat]),
        ("/v1/completions", routed_completion, [completion]),
        ("/invocations", invoke, [chat, completion]),
        ("/v1/messages", create_message, [MessagesRequest]),
        ("/inference/v1/generate", generating, [protocol.GenerateRequest]),
    ):
        posts[path] = partial(_counted(endpoint), service)
        _route(app, "POST", path, posts[path], *bodies)
    _post(app, "/v1/messages/count_tokens", count_tokens, service, CountTokensRequest)
    _post(app, "/tokenize", tokenize, service, protocol.TokenizePrompt, protocol.TokenizeChat)
    _post(app, "/detokenize", detokenize, service, protocol.DetokenizeRequest)
    if service.settings.show_tokenizer:
        _route(app, "GET", "/tokenizer_info", partial(tokenizer_info, service))
    aborting = partial(abort_requests, service, running)
    _route(app, "POST", "/inference/v1/abort_requests", aborting, protocol.AbortRequest)
    return posts


def _add_pooling(app: FastAPI, service: Service) -> None:
    _post(app, "/v1/embeddings", _counted(create_embeddings), service, EmbeddingRequest)
    _post(app, "/pooling", _counted(pool), service, PoolingRequest)
    _post(app, "/classify", _counted(classify), service, ClassifyRequest)
    for path in ("/score", "/v1/score"):
        _post(app, path, _counted(score), service, ScoreRequest)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        _post(app, path, _counted(rerank), service, RerankRequest)


def _add_responses(app: FastAPI, responses: Responses) -> None:
    one = "/v1/responses/{response_id}"
    _route(app, "POST", "/v1/responses", responses.create, ResponseRequest)
    _route(app, "POST", "/v1/responses/input_tokens", responses.count_tokens, TokenCountRequest)
    _route(app, "GET", one, responses.retrieve)
    _route(app, "DELETE", one, responses.delete)
    _route(app, "POST", f"{one}/cancel", responses.cancel)
    _route(app, "GET", f"{one}/input_items", responses.input_items)


def _add_models(app: FastAPI, service: Service) -> None:
    async def list_models(request: Request) -> Response:
        return _json({"object": "list", "data": list(map(_model, service.client.models()))})

    async def retrieve_model(request: Request) -> Response:
        name = request.path_params["model"]
        for card in service.client.models():
            if card.name == name:
                return _json(_model(card))
        raise ModelNotFound(f"the model {name[:200]!r} does not exist; see /v1/models", "model")

    _route(app, "GET", "/v1/models", list_models)
    _route(app, "GET", "/v1/models/{model:path}", retrieve_model)


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    async def health(request: Request) -> Response:
        if not service.client.is_ready():
            raise Unavailable("no request can make progress now")
        return _json({"status": "ok"})

    async def version(request: Request) -> Response:
        return _json({"version": service.settings.version})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def load(request: Request) -> Response:
        return _json({"server_load": service.metrics.num_running})

    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        _route(app, method, path, health)
    _route(app, "GET", "/version", version)
    _route(app, "GET", "/metrics", show_metrics)
    _route(app, "GET", "/load", load)


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "xpyd",
        "root": card.root or card.name,
        "parent": card.parent or None,
        "max_model_len": card.max_model_len,
        "permission": [],
    }


def _json(body: dict[str, Any]) -> Response:
    return Response(encode_json(body), media_type="application/json")


def _counted(endpoint: ServiceEndpoint) -> ServiceEndpoint:
    """Against its key's requests per minute, before anything is read."""

    async def serve(service: Service, request: Request) -> Response:
        service.limiter.take_request(info_of(request))
        return await endpoint(service, request)

    return serve


def _post(
    app: FastAPI,
    path: str,
    endpoint: ServiceEndpoint,
    service: Service,
    *bodies: type[BaseModel],
) -> None:
    _route(app, "POST", path, partial(endpoint, service), *bodies)


def _route(
    app: FastAPI, method: str, path: str, endpoint: Endpoint, *bodies: type[BaseModel]
) -> None:
    """`bodies`: for the documentation only; the endpoint reads and checks the body itself."""

    async def serve(request: Request) -> Response:
        return await endpoint(request)

    name = re.sub(r"\{(\w+)(:path)?\}", r"\1", path.strip("/")).replace("/", "_")
    app.add_api_route(
        path,
        serve,
        methods=[method],
        name=name,
        operation_id=f"{method.lower()}_{name}",
        response_model=None,
        response_class=Response,
        openapi_extra=describe(method, path, bodies),
    )
