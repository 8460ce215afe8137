"""POST /v1/responses, and what can be done with a response afterwards."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cache
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.context import RequestInfo, info_of
from common.api.dialect import dialect_of, end_of
from common.api.enforce import enforced
from common.api.errors import HttpError, parse
from common.api.generation import Demand, Generation, Service
from common.api.responses.answer import Answer
from common.api.responses.calls import rules_of
from common.api.responses.constraint import content_constraint
from common.api.responses.envelope import Envelope
from common.api.responses.items import Item, new_id, read_input
from common.api.responses.pages import page_of, read_page
from common.api.responses.prompt import prompt_of, room_for_prompt
from common.api.responses.protocol import ConversationFields, ResponseRequest, TokenCountRequest
from common.api.responses.reading import AnswerReader
from common.api.responses.refusals import refuse_unsupported
from common.api.responses.runs import Run, Runs
from common.api.sse import EventStream, encode_json, json_answer
from common.errors import BadRequest


class Responses:
    def __init__(self, service: Service) -> None:
        self._service = service
        settings = service.settings
        self._runs = Runs(settings.stored_responses, settings.max_background)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As long as the app lives; runs in the background end with it."""
        try:
            yield
        finally:
            await self._runs.close()

    # --- making ----------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        info = info_of(request)
        self._service.limiter.take_request(info)
        body = await read_object(request, self._service.settings)
        refuse_unsupported(body)
        ask = parse(ResponseRequest, body)
        info.name(ask.request_id)
        run, generation = await self._prepare(ask, info)
        if ask.background:
            self._runs.start(run, generation)
            return self._stream(request, run, -1) if ask.stream else _json(run.answer.body())
        if ask.stream:
            events = self._runs.play(run, generation)
            limit = self._service.settings.stalled_reader_s
            return EventStream(request, events, limit, done=b"")
        return await json_answer(request, self._whole(run, generation))

    async def _prepare(self, ask: ResponseRequest, info: RequestInfo) -> tuple[Run, Generation]:
        """Everything that can be refused is refused here, or by the engine."""
        service = self._service
        card, text = service.resolve(ask.model)
        rules = rules_of(ask, ask.max_tool_calls)
        content = content_constraint(ask)
        before, added = self._conversation(ask, info)
        room = None
        if ask.truncation == "auto":
            room = room_for_prompt(ask.max_output_tokens, card.max_model_len)
        prompt = await prompt_of(ask, before + added, service, text, info, room)
        dialect, prompt_end = dialect_of(text, service.settings), end_of(prompt.token_ids, text)
        reads = dialect.reasoning is not None or rules.mode != "none"
        num_top = (ask.top_logprobs or 0) if ask.shows_logprobs else None
        demand = Demand(
            max_tokens=ask.max_output_tokens,
            default_max_tokens=None,
            choices=1,
            logprobs=num_top,
            prompt_logprobs=None,
            priority=ask.priority,
            cache_salt=ask.cache_salt,
            timeout_s=ask.timeout_s,
            constraint=enforced(rules, dialect, prompt_end, content),
            shown_specials=dialect.special_marks if reads else frozenset(),
        )
        generation = Generation(service, info, (card, text), ask, [prompt], demand, "resp")
        names = None if rules.mode == "none" else rules.names
        message = dialect.reader(prompt_end, names, rules.max_calls)
        reader = AnswerReader(text.vocabulary, message, num_top)
        given = service.settings.sampling_defaults
        defaults = text.sampling_defaults if given is None else given
        envelope = Envelope(new_id("resp"), int(time.time()), card.name, ask, defaults)
        in_pieces = ask.stream or ask.background
        answer = Answer(envelope, generation.usage, reader, in_pieces=in_pieces)
        return Run(info.tenant, answer, before, added), generation

    def _conversation(
        self, ask: ConversationFields, info: RequestInfo
    ) -> tuple[list[Item], list[Item]]:
        """What was said before this request, and what it adds."""
        before: list[Item] = []
        if ask.previous_response_id is not None:
            before = self._previous(info.tenant, ask.previous_response_id).conversation()
            info.body_bytes += len(encode_json(before))  # it is work as if it had been sent again

        @cache
        def known() -> dict[str, Item]:
            return self._runs.items_of(info.tenant)

        return before, read_input(ask.input, lambda item_id: known().get(item_id))

    def _previous(self, owner: str, response_id: str) -> Run:
        run = self._runs.find(owner, response_id)
        if run is None:
            error = HttpError(
                400,
                "previous_response_not_found",
                f"the previous response {response_id!r} is not stored, or no longer",
            )
            error.param = "previous_response_id"
            raise error
        if not run.answer.is_over:
            raise BadRequest("the previous response is still being made", "previous_response_id")
        return run

    async def _whole(self, run: Run, generation: Generation) -> dict[str, Any]:
        async with aclosing(self._runs.play(run, generation)) as events:
            async for _ in events:
                pass
        return run.answer.body()

    async def count_tokens(self, request: Request) -> Response:
        body = await read_object(request, self._service.settings)
        refuse_unsupported(body)
        ask = parse(TokenCountRequest, body)
        card, text = self._service.resolve(ask.model)
        info = info_of(request)
        rules_of(ask)  # refuses what creating would refuse
        room = room_for_prompt(None, card.max_model_len) if ask.truncation == "auto" else None
        before, given = self._conversation(ask, info)
        prompt = await prompt_of(ask, before + given, self._service, text, info, room)
        return _json({"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)})

    # --- afterwards ------------------------------------------------------------------------------

    async def retrieve(self, request: Request) -> Response:
        run = self._find(request)
        query = request.query_params
        if not _flag(query, "stream"):
            return _json(run.answer.body())
        return self._stream(request, run, _number(query, "starting_after"))

    async def delete(self, request: Request) -> Response:
        run = self._find(request)
        self._runs.delete(run)
        return _json({"id": run.id, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        run = self._find(request)
        if not run.is_background:
            raise BadRequest("only a response made with background: true can be cancelled")
        await self._runs.cancel(run)
        return _json(run.answer.body())

    async def input_items(self, request: Request) -> Response:
        run = self._find(request)
        return _json(page_of(run.given, read_page(request.query_params)))

    def _find(self, request: Request) -> Run:
        response_id = request.path_params["response_id"]
        run = self._runs.find(info_of(request).tenant, response_id)
        if run is None:
            raise HttpError(404, "not_found", f"there is no response {response_id[:128]!r}")
        return run

    def _stream(self, request: Request, run: Run, after: int) -> Response:
        limit = self._service.settings.stalled_reader_s
        return EventStream(request, run.follow(after), limit, done=b"")


def _flag(query: QueryParams, name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in ("true", "false"):
        raise BadRequest(f"{name}: must be true or false", name)
    return value == "true"


def _number(query: QueryParams, name: str) -> int:
    """-1 is before the first event."""
    value = query.get(name)
    if value is None:
        return -1
    if not value.isascii() or not value.isdigit():
        raise BadRequest(f"{name}: must be the sequence number of an event", name)
    return int(value[:9])


def _json(body: dict[str, Any]) -> Response:
    return Response(encode_json(body), media_type="application/json")
