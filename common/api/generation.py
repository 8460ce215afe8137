"""All sequences of one HTTP request: prompts times choices, started together, read as one.

Here requests get their internal ids (random, never a client's word), seeds and limits.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import msgspec

from common.admission.admission import Admission, Ask, Place
from common.api.choices import ChoiceText, Piece, merge, pace, run_choice
from common.api.context import RequestInfo
from common.api.deadline import Deadline, missed, stage_of
from common.api.limits import Limiter
from common.api.observe import Observation, RequestMetrics
from common.api.protocol import SamplingFields
from common.api.repetition import RepetitionWatch
from common.api.sampling import Limits, fit, sampling_params, with_seed
from common.api.settings import ApiSettings
from common.engine_client import EngineClient, ModelCard
from common.errors import BadRequest, DeadlineExceeded, ModelNotFound, Unavailable, XpydError
from common.request import (
    Constraint,
    EngineRequest,
    SamplingParams,
    TokenLogprob,
    check_kind,
)
from common.text import TextModel
from common.waterfall import in_milliseconds

FLOW_DIGITS = 15  # of the digest, hexadecimal: fits an int64


@dataclass(frozen=True, slots=True)
class Service:
    """What every endpoint works with."""

    client: EngineClient
    texts: Callable[[str], TextModel]
    metrics: RequestMetrics
    settings: ApiSettings
    admission: Admission
    limiter: Limiter

    def resolve(self, name: str | None) -> tuple[ModelCard, TextModel]:
        """The served model of this name; without a name, the first. Raises 404, or 503 if none."""
        cards = self.client.models()
        if not cards:
            raise Unavailable("no model is ready yet")
        for card in cards:
            if name is None or card.name == name:
                return card, self.texts(card.base or card.name)
        raise ModelNotFound(f"the model {name!r} does not exist; see /v1/models", "model")


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: tuple[int, ...]
    text: str | None = None  # as the client wrote it

    def shown(self, text: TextModel) -> str:
        """What the model was given, as text."""
        return text.decode(self.token_ids) if self.text is None else self.text


@dataclass(slots=True)
class Usage:
    """Counted while pieces pass."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # told by whoever reads the answers

    def body(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(frozen=True, slots=True)
class Demand:
    """What a sequence needs beyond the sampling fields."""

    max_tokens: int | None  # 0: only the prompt is wanted, with its log-probabilities
    default_max_tokens: int | None
    choices: int
    logprobs: int | None
    prompt_logprobs: int | None
    priority: int | None  # None: as the request's header says
    cache_salt: str
    constraint: Constraint | None = None  # what the whole answer must match
    stream_interval: int = 1  # tokens per piece, after the first
    timeout_s: float | None = None  # None: as the request's header says
    shown_specials: frozenset[int] = frozenset()  # special tokens that are decoded nevertheless
    is_pooled: bool = False  # the prompts' vectors are wanted; max_tokens is 0


class Generation:
    """Choice numbers are `prompt index * choices + i`."""

    def __init__(
        self,
        service: Service,
        info: RequestInfo,
        model: tuple[ModelCard, TextModel],
        fields: SamplingFields,
        prompts: list[Prompt],
        demand: Demand,
        id_prefix: str,
    ) -> None:
        """Raises BadRequest or ContextLengthExceeded; nothing runs before `pieces`."""
        self.id = f"{id_prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.card, self.text = model
        self.prompts = prompts
        self.fields = fields
        self.num_choices = len(prompts) * demand.choices
        self.choices_per_prompt = demand.choices
        self.usage = Usage(sum(len(prompt.token_ids) for prompt in prompts))
        self._service = service
        self._info = info
        self._demand = demand
        if self.num_choices > service.settings.max_sequences:
            raise BadRequest(
                f"prompts times n may be at most {service.settings.max_sequences}", "n"
            )
        check_kind(demand.is_pooled, pools=self.card.pooled is not None)
        self._pays_tokens = service.limiter.counts_tokens(info.tenant)
        self._observed: list[Observation] = []  # by choice
        self._params = self._plan()
        info.prompt_tokens = self.usage.prompt_tokens

    def _plan(self) -> list[SamplingParams]:
        """One per prompt."""
        demand, text = self._demand, self.text
        given = self._service.settings.sampling_defaults
        limits = Limits(self.card.max_model_len, self._service.settings.max_logprobs)
        params = sampling_params(
            self.fields,
            text,
            limits,
            logprobs=demand.logprobs,
            prompt_logprobs=demand.prompt_logprobs,
            defaults=text.sampling_defaults if given is None else given,
        )
        if demand.constraint is not None:
            params = msgspec.structs.replace(params, constraint=demand.constraint)
        for prompt in self.prompts:
            if not prompt.token_ids:
                raise BadRequest("the prompt is empty", "prompt")
        least = 0 if demand.is_pooled else 1  # tokens that an engine makes
        return [
            fit(
                params,
                len(prompt.token_ids),
                least if demand.max_tokens == 0 else demand.max_tokens,
                demand.default_max_tokens,
                limits,
            )
            for prompt in self.prompts
        ]

    def timings(self) -> dict[str, float | int]:
        """Where the time went, as far as it is known now."""
        return in_milliseconds(self._info.timings)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Runs everything. Closing it stops every sequence, in the engines too."""
        places = self._enter()
        runs = [self._run(number, place) for number, place in enumerate(places)]
        merged = merge(runs, self._deadline(places))
        try:
            async for piece in merged:
                given = piece if self._demand.max_tokens != 0 else _without_answer(piece)
                self._count(given)
                yield given
        finally:
            await merged.aclose()
            for place in places:
                place.leave()

    def _enter(self) -> list[Place]:
        """Places in the waiting room, one per sequence. Raises what refuses them."""
        limiter, info = self._service.limiter, self._info
        limiter.take_tokens(info, self.usage.prompt_tokens)
        weight, priority = limiter.weight_of(info.tenant), self._priority()
        sizes = [len(prompt.token_ids) for prompt in self.prompts]
        try:
            return self._service.admission.enter(
                [
                    Ask(info.tenant, size, priority, weight)
                    for size in sizes
                    for _ in range(self.choices_per_prompt)
                ]
            )
        except XpydError:
            limiter.spend_tokens(info, -self.usage.prompt_tokens)
            raise

    def _deadline(self, places: list[Place]) -> Deadline | None:
        asked = self._demand.timeout_s
        timeout_s = self._info.timeout_s if asked is None else asked
        if timeout_s is None:
            return None

        def error() -> DeadlineExceeded:
            stage = stage_of(places)
            self._service.metrics.expired(stage.value)
            return missed(timeout_s, stage)

        return Deadline(self._info.started + timeout_s, error)

    def _run(self, number: int, place: Place) -> AsyncGenerator[Piece, None]:
        prompt_index, choice = divmod(number, self.choices_per_prompt)
        prompt, fields = self.prompts[prompt_index], self.fields
        request = EngineRequest(
            request_id=f"{self.id}-{number}",
            prompt_token_ids=prompt.token_ids,
            sampling=with_seed(self._params[prompt_index], choice),
            priority=self._priority(),
            cache_salt=self._cache_salt(),
            session_id=self._info.session_id,
            flow=flow_of(self._info.tenant),
            adapter=self.card.adapter,
            is_pooled=self._demand.is_pooled,
        )
        text = ChoiceText(
            number,
            self.text.detokenizer(
                prompt.token_ids,
                skip_special_tokens=fields.skip_special_tokens,
                shown=self._demand.shown_specials,
            ),
            fields.stop,
            include_stop=fields.include_stop_str_in_output,
            min_tokens=fields.min_tokens,
            special_ids=self.text.vocabulary.special_ids,
            repetition=_repetition_watch(fields),
        )
        observed = self._service.metrics.observe(
            self.card.name, len(prompt.token_ids), self._info.started
        )
        self._observed.append(observed)
        run = run_choice(self._service.client, request, text, observed, place)
        interval = self._demand.stream_interval
        return run if interval == 1 else pace(run, interval)

    def _priority(self) -> int:
        asked = self._demand.priority
        return self._info.priority if asked is None else asked

    def _cache_salt(self) -> str:
        """Prefix blocks are shared only between requests of one key and one salt."""
        tenant, salt = self._info.tenant, self._demand.cache_salt
        return f"{tenant}/{salt}" if tenant else salt

    def _count(self, piece: Piece) -> None:
        self.usage.completion_tokens += len(piece.token_ids)
        self._info.completion_tokens = self.usage.completion_tokens
        if self._pays_tokens:
            self._service.limiter.spend_tokens(self._info, len(piece.token_ids))
        if piece.first is not None:
            if piece.choice % self.choices_per_prompt == 0:
                self.usage.cached_tokens += piece.first.num_cached_tokens
            if not self._info.timings:  # of whoever answers first; it grows
                self._info.timings = self._observed[piece.choice].stages


def flow_of(tenant: str) -> int:
    """A number for whoever takes turns in the engines: the start of the key's digest."""
    return int(tenant[:FLOW_DIGITS], 16) if tenant else 0


def _repetition_watch(fields: SamplingFields) -> RepetitionWatch | None:
    asked = fields.repetition_detection
    if asked is None or not asked.max_pattern_size:
        return None
    return RepetitionWatch(max(1, asked.min_pattern_size), asked.max_pattern_size, asked.min_count)


def _without_answer(piece: Piece) -> Piece:
    """Engines make at least one token; a client that asked for none does not see it."""
    reason = "length" if piece.finish_reason else None
    return Piece(piece.choice, finish_reason=reason, first=piece.first)


@dataclass(slots=True)
class Answer:
    """One choice, whole: what a client that does not stream gets."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.text_offsets += piece.text_offsets
        if piece.first is not None:
            self.prompt_logprobs = piece.first.prompt_logprobs
        self.finish_reason = piece.finish_reason
        self.stop_reason = piece.stop_reason


async def collect(generation: Generation) -> list[Answer]:
    """Run to the end; the answers in the order of their numbers."""
    answers = [Answer() for _ in range(generation.num_choices)]
    pieces = generation.pieces()
    try:
        async for piece in pieces:
            answers[piece.choice].add(piece)
    finally:
        await pieces.aclose()
    return answers
