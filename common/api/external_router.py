"""vLLM's contract between a router and prefill/decode servers: `kv_transfer_params` in a request.

    to P   {"do_remote_decode": true}: run the prompt, answer with what D needs to fetch its KV
    to D   {"do_remote_prefill": true, …}, as P answered: fetch, and go on from there

Served only where the operator has allowed it: such a request says which KV to read, and a router
that forwards JSON cannot prove who it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from msgspec.structs import replace as with_fields
from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.context import RequestInfo, info_of
from common.api.generation import Service
from common.engine_client import EngineClient, ModelCard
from common.errors import BadRequest
from common.request import EngineRequest, TokenEvent

FIELD = "kv_transfer_params"
Endpoint = Callable[[Service, Request], Awaitable[Response]]


class HandOvers(Protocol):
    """What an instance can do for a router of somebody else."""

    async def offer(self, request: EngineRequest) -> tuple[dict[str, Any], TokenEvent]: ...

    def load(
        self, request: EngineRequest, params: dict[str, Any]
    ) -> AsyncGenerator[TokenEvent, None]: ...


def routed(endpoint: Endpoint, hand_overs: HandOvers | None) -> Endpoint:
    """The endpoint, which now also takes `kv_transfer_params`; without `hand_overs` it refuses
    them, as everywhere."""
    if hand_overs is None:
        return endpoint

    async def serve(service: Service, request: Request) -> Response:
        body = await read_object(request, service.settings)
        client = _client_for(body, service.client, hand_overs, info_of(request))
        if client is not None:
            service = replace(service, client=client)
        return await endpoint(service, request)

    return serve


def _client_for(
    body: dict[str, Any], client: EngineClient, hand_overs: HandOvers, info: RequestInfo
) -> EngineClient | None:
    """Takes the field out of the body. None: an ordinary request. Raises BadRequest."""
    params = body.pop(FIELD, None)
    if params is None:
        return None
    if not isinstance(params, dict):
        raise BadRequest(f"{FIELD} must be an object", FIELD)
    offers, loads = (_flag(params, name) for name in ("do_remote_decode", "do_remote_prefill"))
    if offers and loads:
        raise BadRequest(
            f"{FIELD}: do_remote_decode and do_remote_prefill exclude each other", FIELD
        )
    if offers:
        if body.get("stream"):
            raise BadRequest("do_remote_decode: send stream: false", "stream")
        for fields in (body, body.get("sampling_params")):
            if isinstance(fields, dict):  # above the limit of one token, in what some routers send
                fields.pop("min_tokens", None)
        return _Offering(client, hand_overs, info)
    return _Loading(client, hand_overs, params) if loads else None


def _flag(params: dict[str, Any], name: str) -> bool:
    value = params.get(name)
    if not isinstance(value, bool | None):
        raise BadRequest(f"{FIELD}.{name} must be true or false", FIELD)
    return bool(value)


class _Once:
    """An `EngineClient` for one request of one sequence: one hand-over carries one prompt."""

    def __init__(self, client: EngineClient, hand_overs: HandOvers) -> None:
        self._client = client
        self._hand_overs = hand_overs
        self._is_used = False

    def models(self) -> list[ModelCard]:
        return self._client.models()

    def is_ready(self) -> bool:
        return self._client.is_ready()

    def _use(self) -> None:
        if self._is_used:
            raise BadRequest(f"{FIELD}: one prompt and one choice (n: 1) per request", FIELD)
        self._is_used = True


class _Offering(_Once):
    def __init__(self, client: EngineClient, hand_overs: HandOvers, info: RequestInfo) -> None:
        super().__init__(client, hand_overs)
        self._info = info

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """One token, which nobody keeps, whatever limit the router wrote in whichever field."""
        self._use()
        sampling = with_fields(request.sampling, max_tokens=1)
        params, event = await self._hand_overs.offer(with_fields(request, sampling=sampling))
        self._info.answer_fields[FIELD] = params
        yield event


class _Loading(_Once):
    def __init__(self, client: EngineClient, hand_overs: HandOvers, params: dict[str, Any]) -> None:
        super().__init__(client, hand_overs)
        self._params = params

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        self._use()
        async with aclosing(self._hand_overs.load(request, self._params)) as events:
            async for event in events:
                yield event
