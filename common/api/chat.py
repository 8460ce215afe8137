"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.choices import Piece
from common.api.constraints import constraint_of
from common.api.context import info_of
from common.api.errors import parse
from common.api.generation import Answer, Demand, Generation, Service, collect
from common.api.logprobs import chat_logprobs, prompt_logprobs
from common.api.prompts import chat_prompt, truncate
from common.api.protocol import ChatRequest
from common.api.refusals import CHAT, refuse
from common.api.sse import ChunkWriter, EventStream, json_answer
from common.api.tools.deltas import CallDelta, ContentDelta, ToolDelta
from common.api.tools.formats import HERMES
from common.api.tools.parser import ToolCallParser
from common.errors import BadRequest


async def create_chat_completion(service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    refuse(body, CHAT)
    ask = parse(ChatRequest, body)
    if ask.stream and ask.prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs are not given in a stream", "prompt_logprobs")
    model = service.resolve(ask.model)
    card, text = model
    info = info_of(request)
    info.name(ask.request_id)
    effort = {"reasoning_effort": ask.reasoning_effort} if ask.reasoning_effort else {}
    prompt = await chat_prompt(
        ask,
        text,
        service.settings,
        info,
        add_special_tokens=bool(ask.add_special_tokens),
        variables=effort,
    )
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
        constraint=constraint_of(ask),
        stream_interval=ask.stream_interval if ask.stream else 1,
    )
    prompts = [truncate(prompt, ask, card.max_model_len)]
    generation = Generation(service, info, model, ask, prompts, demand, "chatcmpl")
    chat = _Chat(ask, generation, service.settings.version)
    if ask.stream:
        return EventStream(request, chat.stream(), service.settings.stalled_reader_s)
    return await json_answer(request, chat.complete())


class _Chat:
    """One conversation's answer in either form. Both go through the same parser and logprobs."""

    def __init__(self, ask: ChatRequest, generation: Generation, version: str) -> None:
        self._ask = ask
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
        )
        last = ask.messages[-1]
        self._echo = last.content or "" if ask.echo and last.role == "assistant" else ""
        self._reads_tools = ask.tools is not None and ask.tool_choice != "none"

    # --- whole -----------------------------------------------------------------------------------

    async def complete(self) -> dict[str, Any]:
        generation, ask = self._generation, self._ask
        answers = await collect(generation)
        body: dict[str, Any] = {
            "id": generation.id,
            "object": "chat.completion",
            "created": generation.created,
            "model": generation.card.name,
            "choices": [self._choice(n, answer) for n, answer in enumerate(answers)],
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
        content, calls = self._message_parts(answer.text)
        content = self._echo + content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["content"] = content or None
            message["tool_calls"] = calls
        choice = {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(answer),
            "finish_reason": _finish_reason(answer.finish_reason, bool(calls)),
            "stop_reason": answer.stop_reason,
        }
        if self._ask.return_token_ids:
            choice["token_ids"] = answer.token_ids
        return choice

    def _message_parts(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Content and tool calls: the sum of the deltas that a stream would show."""
        parser = self._parser()
        if parser is None:
            return text, []
        content = ""
        calls: list[dict[str, Any]] = []
        for delta in [*parser.push(text), *parser.finish()]:
            if isinstance(delta, ContentDelta):
                content += delta.text
            elif delta.name is not None:
                function = {"name": delta.name, "arguments": delta.arguments}
                calls.append({"id": delta.call_id, "type": "function", "function": function})
            else:
                calls[-1]["function"]["arguments"] += delta.arguments
        return content, calls

    # --- streamed --------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Encoded events; the first comes with the first token of any choice."""
        generation = self._generation
        parsers = [self._parser() for _ in range(generation.num_choices)]
        opening = b"".join(map(self._opening, range(generation.num_choices)))
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                data = opening + self._events(piece, parsers[piece.choice])
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

    def _events(self, piece: Piece, parser: ToolCallParser | None) -> bytes:
        """All events of one piece; b"" if it has nothing to show yet."""
        deltas = self._deltas(piece, parser)
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
            has_calls = parser is not None and parser.num_calls > 0
            ending = _streamed_choice(piece.choice, {})
            ending["finish_reason"] = _finish_reason(piece.finish_reason, has_calls)
            ending["stop_reason"] = piece.stop_reason
            choices.append(ending)
        return b"".join(map(self._chunks.chunk, choices))

    def _deltas(self, piece: Piece, parser: ToolCallParser | None) -> list[dict[str, Any]]:
        if parser is None:
            return [{"content": piece.text}] if piece.text else []
        found: list[ToolDelta] = parser.push(piece.text)
        if piece.finish_reason:
            found += parser.finish()
        return [
            {"tool_calls": [delta.body()]}
            if isinstance(delta, CallDelta)
            else {"content": delta.text}
            for delta in found
        ]

    # --- both ------------------------------------------------------------------------------------

    def _logprobs(self, of: Piece | Answer) -> dict[str, Any] | None:
        if not self._ask.logprobs or not of.logprobs:
            return None
        content = chat_logprobs(
            self._generation.text.vocabulary,
            of.token_ids,
            of.logprobs,
            num_top=self._ask.top_logprobs or 0,
            as_ids=self._ask.return_tokens_as_token_ids,
        )
        return {"content": content, "refusal": None}

    def _parser(self) -> ToolCallParser | None:
        if not self._reads_tools:
            return None
        names = frozenset(tool["function"]["name"] for tool in self._ask.tools or ())
        return HERMES.parser(names, None if self._ask.parallel_tool_calls else 1)


def _streamed_choice(number: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}


def _finish_reason(reason: str | None, has_calls: bool) -> str | None:
    return "tool_calls" if has_calls and reason == "stop" else reason
