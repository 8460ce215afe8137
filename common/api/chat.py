"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.choices import Piece
from common.api.constraints import constraint_of
from common.api.context import info_of
from common.api.dialect import Dialect, dialect_of, end_of
from common.api.enforce import Budget, enforced
from common.api.errors import parse
from common.api.generation import Answer, Demand, Generation, Service, collect
from common.api.logprobs import chat_logprobs, prompt_logprobs
from common.api.message import MessageParts, MessageReader
from common.api.prompts import chat_prompt, truncate
from common.api.protocol import ChatRequest
from common.api.reasoning.effort import effort_variables
from common.api.refusals import CHAT, refuse
from common.api.sse import ChunkWriter, EventStream, json_answer
from common.api.tools.choice import CallRules, call_rules
from common.api.tools.deltas import CallDelta, Delta, ReasoningDelta
from common.api.tools.legacy import modernized, old_message
from common.errors import BadRequest


async def create_chat_completion(service: Service, request: Request) -> Response:
    body, is_legacy = modernized(await read_object(request, service.settings))
    refuse(body, CHAT)
    ask = parse(ChatRequest, body)
    if ask.stream and ask.prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs are not given in a stream", "prompt_logprobs")
    model = service.resolve(ask.model)
    card, text = model
    info = info_of(request)
    info.name(ask.request_id, ask.session_id)
    dialect = dialect_of(text, service.settings)
    rules = _call_rules(ask, service)
    prompt = await chat_prompt(
        ask,
        text,
        service.settings,
        info,
        add_special_tokens=bool(ask.add_special_tokens),
        variables=effort_variables(
            ask.reasoning_effort, dialect.template, ask.chat_template_kwargs
        ),
    )
    prompts = [truncate(prompt, ask, card.max_model_len)]
    style = _Style(dialect, rules, end_of(prompts[0].token_ids, text), is_legacy)
    demand = Demand(
        max_tokens=ask.max_tokens
        if ask.max_completion_tokens is None
        else ask.max_completion_tokens,
        default_max_tokens=None,
        choices=ask.n,
        logprobs=(ask.top_logprobs or 0) if ask.logprobs else None,
        prompt_logprobs=ask.prompt_logprobs,
        priority=ask.priority,
        cache_salt=ask.cache_salt,
        timeout_s=ask.timeout_s,
        stream_interval=ask.stream_interval if ask.stream else 1,
        constraint=enforced(
            rules, dialect, style.prompt_end, constraint_of(ask), _budget(ask.thinking_token_budget)
        ),
        shown_specials=dialect.special_marks if style.reads else frozenset(),
    )
    generation = Generation(service, info, model, ask, prompts, demand, "chatcmpl")
    chat = _Chat(ask, generation, style, service.settings.version)
    if ask.stream:
        return EventStream(request, chat.stream(), service.settings.stalled_reader_s)
    return await json_answer(request, chat.complete())


def _budget(num_tokens: int | None) -> Budget | None:
    return None if num_tokens is None else Budget(num_tokens, "thinking_token_budget")


def _call_rules(ask: ChatRequest, service: Service) -> CallRules:
    if ask.tools is None and ask.tool_choice is not None:
        raise BadRequest("tool_choice is only allowed with tools", "tool_choice")
    return call_rules(
        ask.tools,
        ask.tool_choice,
        parallel=ask.parallel_tool_calls,
        reads_auto=service.settings.reads_auto_calls,
    )


@dataclass(frozen=True, slots=True)
class _Style:
    """How this answer's text is to be read."""

    dialect: Dialect
    rules: CallRules
    prompt_end: str
    is_legacy: bool  # calls are told in the words of `functions`

    @property
    def reads(self) -> bool:
        return self.dialect.reasoning is not None or self.rules.mode != "none"

    def reader(self) -> MessageReader:
        names = None if self.rules.mode == "none" else self.rules.names
        return self.dialect.reader(self.prompt_end, names, self.rules.max_calls)

    def finish_reason(self, reason: str | None, num_calls: int) -> str | None:
        told = self.rules.finish_reason(reason, num_calls)
        return "function_call" if self.is_legacy and told == "tool_calls" else told

    def told(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message or a delta in the client's words."""
        return old_message(message) if self.is_legacy else message


class _Chat:
    """One conversation's answer in either form. Both go through the same reader and logprobs."""

    def __init__(
        self, ask: ChatRequest, generation: Generation, style: _Style, version: str
    ) -> None:
        self._ask = ask
        self._style = style
        self._generation = generation
        self._fingerprint = f"xpyd-{version}"
        self._chunks = ChunkWriter(
            {
                "id": generation.id,
                "object": "chat.completion.chunk",
                "created": generation.created,
                "model": generation.card.name,
                "system_fingerprint": self._fingerprint,
            },
            ask.stream_options,
            generation.usage.body,
            generation.timings,
        )
        last = ask.messages[-1]
        self._echo = last.content or "" if ask.echo and last.role == "assistant" else ""

    # --- whole -----------------------------------------------------------------------------------

    async def complete(self) -> dict[str, Any]:
        generation, ask = self._generation, self._ask
        answers = await collect(generation)
        choices = [self._choice(number, answer) for number, answer in enumerate(answers)]
        body: dict[str, Any] = {
            "id": generation.id,
            "object": "chat.completion",
            "created": generation.created,
            "model": generation.card.name,
            "choices": choices,
            "usage": generation.usage.body(),
            "system_fingerprint": self._fingerprint,
        }
        prompt = generation.prompts[0].token_ids
        if ask.return_token_ids:
            body["prompt_token_ids"] = prompt
        if ask.return_prompt_text:
            body["prompt_text"] = generation.prompts[0].shown(generation.text)
        if ask.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(
                generation.text.vocabulary,
                prompt,
                answers[0].prompt_logprobs,
                ask.prompt_logprobs,
            )
        return body

    def _choice(self, number: int, answer: Answer) -> dict[str, Any]:
        reader, parts = self._style.reader(), MessageParts()
        for delta in [*reader.push(answer.text, answer.text_offsets), *reader.finish()]:
            parts.add(delta)
        self._generation.usage.reasoning_tokens += reader.num_reasoning_tokens
        choice = {
            "index": number,
            "message": self._style.told(self._message(parts)),
            "logprobs": self._logprobs(answer),
            "finish_reason": self._style.finish_reason(answer.finish_reason, reader.num_calls),
            "stop_reason": answer.stop_reason,
        }
        if self._ask.return_token_ids:
            choice["token_ids"] = answer.token_ids
        return choice

    def _message(self, parts: MessageParts) -> dict[str, Any]:
        content: str | None = self._echo + parts.content
        if not content and (parts.calls or parts.reasoning):
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if parts.reasoning and self._ask.include_reasoning:
            message["reasoning"] = message["reasoning_content"] = parts.reasoning
        if parts.calls:
            message["tool_calls"] = parts.calls
        return message

    # --- streamed --------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Encoded events; the first comes with the first token of any choice."""
        generation = self._generation
        readers = [self._style.reader() for _ in range(generation.num_choices)]
        opening = b"".join(map(self._opening, range(generation.num_choices)))
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                data = opening + self._events(piece, readers)
                opening = b""
                if data:
                    yield data
        if data := self._chunks.last():
            yield data

    def _opening(self, number: int) -> bytes:
        extra: dict[str, Any] = {}
        if self._ask.return_token_ids:
            extra["prompt_token_ids"] = self._generation.prompts[0].token_ids
        if self._ask.return_prompt_text:
            extra["prompt_text"] = self._generation.prompts[0].shown(self._generation.text)
        delta = {"role": "assistant", "content": ""}
        opening = self._chunks.chunk(_streamed_choice(number, delta), **extra)
        if self._echo:
            opening += self._chunks.chunk(_streamed_choice(number, {"content": self._echo}))
        return opening

    def _events(self, piece: Piece, readers: list[MessageReader]) -> bytes:
        """All events of one piece; b"" if it has nothing to show yet."""
        reader = readers[piece.choice]
        deltas = self._deltas(piece, reader)
        usage = self._generation.usage
        usage.reasoning_tokens = sum(each.num_reasoning_tokens for each in readers)
        logprobs = self._logprobs(piece)
        shows_ids = self._ask.return_token_ids and bool(piece.token_ids)
        if not deltas and (logprobs or shows_ids):
            deltas = [{}]
        choices = [_streamed_choice(piece.choice, delta) for delta in deltas]
        if choices:  # the first one carries what belongs to the tokens
            choices[0]["logprobs"] = logprobs
            if shows_ids:
                choices[0]["token_ids"] = piece.token_ids
        if piece.finish_reason:
            ending = _streamed_choice(piece.choice, {})
            reason = self._style.finish_reason(piece.finish_reason, reader.num_calls)
            ending["finish_reason"] = reason
            ending["stop_reason"] = piece.stop_reason
            choices.append(ending)
        return b"".join(map(self._chunks.chunk, choices))

    def _deltas(self, piece: Piece, reader: MessageReader) -> list[dict[str, Any]]:
        found = reader.push(piece.text, piece.text_offsets)
        if piece.finish_reason:
            found += reader.finish()
        if not self._ask.include_reasoning:
            found = [delta for delta in found if not isinstance(delta, ReasoningDelta)]
        return [self._style.told(_delta_body(delta)) for delta in found]

    # --- both ------------------------------------------------------------------------------------

    def _logprobs(self, of: Piece | Answer) -> dict[str, Any] | None:
        if not self._ask.logprobs or not of.logprobs:
            return None
        content = chat_logprobs(
            self._generation.text.vocabulary,
            of.token_ids,
            of.logprobs,
            num_top=self._ask.num_top,
            as_ids=self._ask.return_tokens_as_token_ids,
        )
        return {"content": content, "refusal": None}


def _delta_body(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, CallDelta):
        return {"tool_calls": [delta.body()]}
    if isinstance(delta, ReasoningDelta):
        return {"reasoning": delta.text, "reasoning_content": delta.text}
    return {"content": delta.text}


def _streamed_choice(number: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
