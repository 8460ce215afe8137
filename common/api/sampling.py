"""A request's fields, the model's defaults and the room in its context → complete SamplingParams.

Seeds. Without one, a random seed is drawn, so that unseeded requests differ. Choice 0 uses the seed
itself, choice i > 0 the first 8 bytes of SHA-256("xpyd-choice:{seed}:{i}") as a signed integer:
choices differ, each can be had again, and a prompt in a batch gets the answers it gets alone.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from common.api.protocol import SamplingFields
from common.errors import BadRequest, ContextLengthExceeded
from common.request import SamplingParams
from common.text import TextModel


@dataclass(frozen=True, slots=True)
class Limits:
    max_model_len: int
    max_logprobs: int


def draw_seed() -> int:
    return secrets.randbits(63)


def choice_seed(seed: int, choice: int) -> int:
    if choice == 0:
        return seed
    digest = hashlib.sha256(f"xpyd-choice:{seed}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def sampling_params(
    fields: SamplingFields,
    text: TextModel,
    limits: Limits,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
    defaults: Mapping[str, float],
) -> SamplingParams:
    """All but `max_tokens` (0 here: `fit` decides per prompt) and the choices' seeds."""
    check_logprobs(logprobs, "logprobs", limits)
    check_logprobs(prompt_logprobs, "prompt_logprobs", limits)
    check_token_ids(fields.logit_bias, "logit_bias", text)
    check_token_ids(fields.stop_token_ids, "stop_token_ids", text)
    check_token_ids(fields.allowed_token_ids or (), "allowed_token_ids", text)
    check_token_ids(fields.logprob_token_ids or (), "logprob_token_ids", text)
    if fields.logprob_token_ids and logprobs is None:
        raise BadRequest("logprob_token_ids is only allowed with logprobs", "logprob_token_ids")
    return SamplingParams(
        max_tokens=0,
        temperature=_first(fields.temperature, defaults.get("temperature"), 1.0),
        top_p=_first(fields.top_p, defaults.get("top_p"), 1.0),
        top_k=max(0, int(_first(fields.top_k, defaults.get("top_k"), 0))),
        min_p=_first(fields.min_p, defaults.get("min_p"), 0.0),
        seed=draw_seed() if fields.seed is None else fields.seed,
        repetition_penalty=_first(
            fields.repetition_penalty, defaults.get("repetition_penalty"), 1.0
        ),
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        min_tokens=fields.min_tokens,
        stop_token_ids=tuple(dict.fromkeys(fields.stop_token_ids)),
        ignore_eos=fields.ignore_eos,
        logit_bias=tuple(sorted(fields.logit_bias.items())),
        bad_words=_bad_words(fields.bad_words, text),
        allowed_token_ids=tuple(sorted(set(fields.allowed_token_ids or ()))),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logprob_token_ids=tuple(dict.fromkeys(fields.logprob_token_ids or ())),
    )


def fit(
    params: SamplingParams,
    prompt_len: int,
    max_tokens: int | None,
    default: int | None,
    limits: Limits,
) -> SamplingParams:
    """With `max_tokens` for this prompt: as asked, else `default`, else all the room there is."""
    room = limits.max_model_len - prompt_len
    asked = 1 if max_tokens is None else max_tokens
    if asked > room:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limits.max_model_len} tokens. However, you "
            f"requested {prompt_len + asked} tokens ({prompt_len} in the prompt, {asked} for the "
            "answer). Please shorten the prompt or ask for fewer tokens.",
            "max_tokens" if prompt_len < limits.max_model_len else "prompt",
        )
    chosen = min(room, default or room) if max_tokens is None else max_tokens
    if params.min_tokens > chosen:
        raise BadRequest(f"min_tokens is more than the {chosen} tokens asked for", "min_tokens")
    return msgspec.structs.replace(params, max_tokens=chosen)


def with_seed(params: SamplingParams, choice: int) -> SamplingParams:
    return msgspec.structs.replace(params, seed=choice_seed(params.seed, choice))


def check_logprobs(asked: int | None, param: str, limits: Limits) -> None:
    if asked is not None and asked > limits.max_logprobs:
        raise BadRequest(f"{param}: at most {limits.max_logprobs} are given", param)


def check_token_ids(token_ids: object, param: str, text: TextModel) -> None:
    """`token_ids`: any iterable of ids."""
    highest = max(token_ids, default=0)  # type: ignore[call-overload]
    if highest >= text.vocab_size:
        raise BadRequest(
            f"{param}: token id {highest} is not in the vocabulary of {text.vocab_size}", param
        )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _bad_words(words: list[str], text: TextModel) -> tuple[tuple[int, ...], ...]:
    """Each word as it is spelled at the start of a text and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for spelling in (word, " " + word.lstrip()):
            if token_ids := tuple(text.encode(spelling, add_special_tokens=False)):
                found[token_ids] = None
    return tuple(found)
