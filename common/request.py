"""What the user asked and what comes back, in tokens. Plain frozen data; knows no HTTP and no
engine.

The same structs travel between processes (`common/wire.py`), so every field is msgpack-able.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from common.errors import BadRequest

_ADAPTER, _ESCAPE = "lora:", "salt:"


def kv_salt_of(cache_salt: str, adapter: str) -> str:
    """One text for both, and never one text for two pairs, whatever a client calls its salt."""
    if adapter:
        return f"{_ADAPTER}{adapter}:{cache_salt}"
    return _ESCAPE + cache_salt if cache_salt.startswith((_ADAPTER, _ESCAPE)) else cache_salt


def split_kv_salt(kv_salt: str) -> tuple[str, str]:
    """(cache salt, adapter), as `kv_salt_of` was given them."""
    if kv_salt.startswith(_ADAPTER):
        adapter, _, cache_salt = kv_salt.removeprefix(_ADAPTER).partition(":")
        return cache_salt, adapter
    return kv_salt.removeprefix(_ESCAPE), ""


class FinishReason(str, Enum):
    """Why a sequence ended. `ABORT` is told to nobody but logs: the client has gone."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What the whole output must match: checked by the front end, compiled by the engine."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"]
    text: str  # schema or list of choices as JSON, the regex, the grammar; "" for json_object
    field: str = "structured_outputs"  # the client's name for it, for errors


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How to choose tokens. Already validated and complete: the front end fills in every default.

    The noise of a draw is a pure function of (`seed`, position of the token), so a request that
    moves to another instance draws there what it would have drawn here.
    """

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int = 0  # any int64; the front end draws one when the client gave none
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    min_tokens: int = 0  # no EOS and no stop id before so many output tokens
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    logprobs: int | None = None  # None: off; 0: the chosen token's only; k: and the k best
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    logprob_token_ids: tuple[int, ...] = ()  # with logprobs: of these tokens, not of the best

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


class EngineRequest(msgspec.Struct, frozen=True, array_like=True):
    """One sequence to run. `output_token_ids` are tokens already emitted, by whoever ran it before:
    the engine continues after them, with penalties, limits and noise as if it had emitted them."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    output_token_ids: tuple[int, ...] = ()
    priority: int = 0  # lower runs first, among those of its flow
    cache_salt: str = ""  # requests share prefix blocks only within one salt
    session_id: str = ""  # the client's label for what belongs together; may steer routing only
    adapter: str = ""  # digest of the LoRA adapter to run with; "": the model itself
    flow: int = 0  # whose it is: flows take turns in an engine. Of the key's digest; 0: no keys
    is_pooled: bool = False  # the prompt's vector is wanted, no output

    @property
    def kv_salt(self) -> str:
        """What the KV of equal tokens may differ by, or must not be shared across."""
        return kv_salt_of(self.cache_salt, self.adapter)


class PooledOutput(msgspec.Struct, frozen=True, array_like=True):
    """What the vectors of a model that pools are. Engines give them as the model made them."""

    num_values: int
    is_normalized: bool = False  # are they meant to have length 1?
    labels: tuple[str, ...] = ()  # of a classifier's scores; (): they are embeddings
    can_shorten: bool = False  # do the first numbers of an embedding stand alone?


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities (natural, of the raw logits) at one position."""

    logprob: float  # of the token itself
    rank: int  # 1: the most likely
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one request after one engine step. The last event has `finish_reason`.

    `index` is the output position of `token_ids[0]`: a receiver that has seen more drops what it
    knows.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token when asked for
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # first event only; first entry None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the id in `stop_token_ids` that ended it; None for EOS
    num_cached_tokens: int = 0  # prompt tokens not computed thanks to the prefix cache
    # Seconds per stage, of an attempt's first event only; names: common/waterfall.py.
    timings: dict[str, float] = {}
    vector: bytes | None = None  # of a pooled request's only event: float32, little-endian


def check_kind(is_pooled: bool, *, pools: bool) -> None:
    """Is a request for what this model does? Raises BadRequest."""
    if is_pooled and not pools:
        raise BadRequest(
            "this model generates text; start a server with --runner pooling for embeddings, "
            "scores and classes",
            "model",
        )
    if pools and not is_pooled:
        raise BadRequest(
            "this server gives embeddings, scores or classes (--runner pooling), not text", "model"
        )
