"""What a request may ask of an engine. Refused, with the field's name, before anything is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable

from common.engine.interface import EngineSettings
from common.errors import BadRequest, ContextLengthExceeded
from common.request import EngineRequest, SamplingParams

_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def check_request(request: EngineRequest, settings: EngineSettings, vocab_size: int) -> None:
    """Raises BadRequest or ContextLengthExceeded."""
    if not request.prompt_token_ids:
        raise BadRequest("the prompt must have at least one token", param="prompt")
    _check_context(request, settings.max_model_len)
    _check_ids("prompt", request.prompt_token_ids, vocab_size)
    _check_ids("output_token_ids", request.output_token_ids, vocab_size)
    _check_sampling(request.sampling, vocab_size)


def _check_context(request: EngineRequest, max_model_len: int) -> None:
    num_prompt = len(request.prompt_token_ids)
    num_outputs = max(request.sampling.max_tokens, len(request.output_token_ids))
    if num_prompt + num_outputs > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens, but the request has "
            f"{num_prompt + num_outputs} ({num_prompt} prompt, {num_outputs} answer): "
            f"shorten the prompt or lower max_tokens",
            param="max_tokens" if num_prompt < max_model_len else "prompt",
        )


def _check_sampling(params: SamplingParams, vocab_size: int) -> None:
    for name in _NUMBERS:
        _require(math.isfinite(getattr(params, name)), name, "must be a finite number")
    _require(params.max_tokens >= 0, "max_tokens", "must not be negative")
    _require(params.temperature >= 0, "temperature", "must not be negative")
    _require(0 < params.top_p <= 1, "top_p", "must be above 0 and at most 1")
    _require(0 <= params.min_p <= 1, "min_p", "must be from 0 to 1")
    _require(params.top_k >= 0, "top_k", "must be 0 (off) or positive")
    _require(params.repetition_penalty > 0, "repetition_penalty", "must be positive")
    _require(
        0 <= params.min_tokens <= params.max_tokens, "min_tokens", "must not exceed max_tokens"
    )
    _require(-(1 << 63) <= params.seed < 1 << 63, "seed", "must fit into 64 bits")
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        _require(count is None or count >= 0, name, "must not be negative")
    _require(all(params.bad_words), "bad_words", "must not hold an empty sequence")
    is_below_infinity = all(bias < math.inf for _, bias in params.logit_bias)  # nor NaN
    _require(is_below_infinity, "logit_bias", "must hold finite numbers")
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    _check_ids("logprob_token_ids", params.logprob_token_ids, vocab_size)
    _check_ids("allowed_token_ids", params.allowed_token_ids, vocab_size)
    _check_ids("logit_bias", (token for token, _ in params.logit_bias), vocab_size)
    _check_ids("bad_words", (token for word in params.bad_words for token in word), vocab_size)


def _require(is_fine: bool, name: str, what: str) -> None:
    if not is_fine:
        raise BadRequest(f"{name} {what}", param=name)


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    ids = tuple(token_ids)
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        bad = next(token for token in ids if not 0 <= token < vocab_size)
        raise BadRequest(
            f"{name} holds token id {bad}; this model's ids go from 0 to {vocab_size - 1}",
            param=name,
        )
