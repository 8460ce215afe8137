"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.choices import Piece
from common.api.constraints import constraint_of
from common.api.context import info_of
from common.api.errors import parse
from common.api.generation import Answer, Demand, Generation, Prompt, Service, collect
from common.api.logprobs import completion_logprobs, prompt_logprobs
from common.api.prompts import completion_prompts, truncate
from common.api.protocol import CompletionRequest
from common.api.refusals import COMPLETIONS, refuse
from common.api.sse import ChunkWriter, EventStream, json_answer
from common.errors import BadRequest
from common.request import TokenLogprob
from common.text import TextModel

DEFAULT_MAX_TOKENS = 16


async def create_completion(service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    refuse(body, COMPLETIONS)
    ask = parse(CompletionRequest, body)
    _check(ask)
    model = service.resolve(ask.model)
    card, text = model
    info = info_of(request)
    info.name(ask.request_id, ask.session_id)
    prompts = [
        truncate(prompt, ask, card.max_model_len)
        for prompt in await completion_prompts(ask, text, info)
    ]
    generation = Generation(service, info, model, ask, prompts, _demand(ask), "cmpl")
    completion = _Completion(ask, generation, service.settings.version)
    if ask.stream:
        return EventStream(request, completion.stream(), service.settings.stalled_reader_s)
    return await json_answer(request, completion.complete())


def _check(ask: CompletionRequest) -> None:
    if ask.max_tokens == 0 and not ask.echo:
        raise BadRequest("max_tokens: 0 is only allowed with echo: true", "max_tokens")
    if ask.best_of is not None and ask.best_of < ask.n:
        raise BadRequest("best_of must not be less than n", "best_of")
    if ask.stream and ask.best_of is not None and ask.best_of > ask.n:
        raise BadRequest("best_of cannot be streamed", "best_of")
    if ask.stream and ask.prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs are not given in a stream", "prompt_logprobs")


def _demand(ask: CompletionRequest) -> Demand:
    """`best_of` needs the log-probabilities that rank the candidates, `echo` the prompt's."""
    candidates = ask.best_of or ask.n
    ranks = candidates > ask.n
    echoed = ask.logprobs if ask.echo else None
    asked = [k for k in (ask.prompt_logprobs, echoed) if k is not None]
    return Demand(
        max_tokens=ask.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        choices=candidates,
        logprobs=0 if ranks and ask.logprobs is None else ask.logprobs,
        prompt_logprobs=max(asked, default=None),
        priority=ask.priority,
        cache_salt=ask.cache_salt,
        timeout_s=ask.timeout_s,
        constraint=constraint_of(ask),
        stream_interval=ask.stream_interval if ask.stream else 1,
    )


class _Completion:
    """The answers of one request in either form."""

    def __init__(self, ask: CompletionRequest, generation: Generation, version: str) -> None:
        self._ask = ask
        self._generation = generation
        self._text: TextModel = generation.text
        self._echoes = [self._echo(prompt) for prompt in generation.prompts]
        self._envelope = {
            "id": generation.id,
            "object": "text_completion",
            "created": generation.created,
            "model": generation.card.name,
            "system_fingerprint": f"xpyd-{version}",
        }
        self._chunks = ChunkWriter(
            self._envelope, ask.stream_options, generation.usage.body, generation.timings
        )

    # --- whole -----------------------------------------------------------------------------------

    async def complete(self) -> dict[str, Any]:
        answers = await collect(self._generation)
        choices: list[dict[str, Any]] = []
        for n in range(len(self._generation.prompts)):
            mine = answers[n * self._generation.choices_per_prompt :]
            for answer in self._best(mine[: self._generation.choices_per_prompt]):
                choices.append(self._choice(len(choices), n, answer))
        usage = self._generation.usage.body()
        return {**self._envelope, "choices": choices, "usage": usage}

    def _best(self, candidates: list[Answer]) -> list[Answer]:
        """The `n` with the highest cumulative log-probability, best first; all, if n were run."""
        if len(candidates) == self._ask.n:
            return candidates
        candidates.sort(key=lambda answer: sum(t.logprob for t in answer.logprobs), reverse=True)
        return candidates[: self._ask.n]

    def _choice(self, number: int, prompt_index: int, answer: Answer) -> dict[str, Any]:
        ask, prompt = self._ask, self._generation.prompts[prompt_index]
        choice: dict[str, Any] = {
            "index": number,
            "text": self._echoes[prompt_index] + answer.text,
            "logprobs": self._logprobs(prompt_index, answer, answer.prompt_logprobs, is_first=True),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if ask.return_token_ids:
            choice["prompt_token_ids"] = prompt.token_ids
            choice["token_ids"] = answer.token_ids
        if ask.return_prompt_text:
            choice["prompt_text"] = prompt.shown(self._text)
        if ask.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(
                self._text.vocabulary,
                prompt.token_ids,
                answer.prompt_logprobs,
                ask.prompt_logprobs,
            )
        return choice

    # --- streamed --------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Encoded events, the first with the first token."""
        async with aclosing(self._generation.pieces()) as pieces:
            async for piece in pieces:
                if data := self._event(piece):
                    yield data
        if data := self._chunks.last():
            yield data

    def _event(self, piece: Piece) -> bytes:
        """The event of one piece; b"" if it has nothing to show yet."""
        ask = self._ask
        prompt_index = piece.choice // self._generation.choices_per_prompt
        is_first = piece.first is not None
        choice: dict[str, Any] = {
            "index": piece.choice,
            "text": self._echoes[prompt_index] + piece.text if is_first else piece.text,
            "logprobs": self._logprobs(
                prompt_index,
                piece,
                piece.first.prompt_logprobs if piece.first else (),
                is_first=is_first,
            ),
            "finish_reason": piece.finish_reason,
        }
        if piece.finish_reason:
            choice["stop_reason"] = piece.stop_reason
        if ask.return_token_ids:
            choice["token_ids"] = piece.token_ids
            if is_first:
                choice["prompt_token_ids"] = self._generation.prompts[prompt_index].token_ids
        if ask.return_prompt_text and is_first:
            choice["prompt_text"] = self._generation.prompts[prompt_index].shown(self._text)
        if choice["text"] or choice["logprobs"] or piece.finish_reason or "token_ids" in choice:
            return self._chunks.chunk(choice)
        return b""

    # --- both ------------------------------------------------------------------------------------

    def _echo(self, prompt: Prompt) -> str:
        if not self._ask.echo:
            return ""
        if prompt.text is not None:
            return prompt.text
        skip = self._ask.skip_special_tokens
        return self._text.decode(prompt.token_ids, skip_special_tokens=skip)

    def _logprobs(
        self,
        prompt_index: int,
        of: Piece | Answer,
        of_prompt: tuple[TokenLogprob | None, ...],
        *,
        is_first: bool,
    ) -> dict[str, Any] | None:
        """The four lists, the prompt's entries before the first of the answer's if it is echoed."""
        ask = self._ask
        if ask.logprobs is None:
            return None
        table = _LogprobTable(self._text, ask)
        if ask.echo and is_first:
            table.add_prompt(self._generation.prompts[prompt_index], of_prompt)
        first_offset = len(self._echoes[prompt_index])
        table.add(of.token_ids, of.logprobs, of.text_offsets, first_offset)
        return table.body()


class _LogprobTable:
    """Collects the parallel lists: the prompt's first when echoed, then the answer's."""

    def __init__(self, text: TextModel, ask: CompletionRequest) -> None:
        self._text = text
        self._num_top = ask.num_top
        self._as_ids = ask.return_tokens_as_token_ids
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, prompt: Prompt, logprobs: tuple[TokenLogprob | None, ...]) -> None:
        """The first token of a text has no log-probability."""
        offset = 0
        detokenizer = self._text.detokenizer((), skip_special_tokens=False)
        for token_id in prompt.token_ids:
            self._offsets.append(offset)
            offset += len(detokenizer.push(token_id))
        self._token_ids += prompt.token_ids
        self._logprobs += logprobs or [None] * len(prompt.token_ids)

    def add(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob],
        offsets: Sequence[int],
        first_offset: int,
    ) -> None:
        self._token_ids += token_ids
        self._logprobs += logprobs
        self._offsets += [first_offset + offset for offset in offsets]

    def body(self) -> dict[str, Any]:
        return completion_logprobs(
            self._text.vocabulary,
            self._token_ids,
            self._logprobs,
            self._offsets,
            num_top=self._num_top,
            as_ids=self._as_ids,
        )
