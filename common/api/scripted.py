"""An engine without a model: gives out the tokens it was told to. For tests and for benchmarks.

Deterministic: what a request gets depends on the request alone. It keeps the promises of
`EngineClient` and breaks off, loudly, when a request breaks the front end's.
"""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from common.engine_client import ModelCard
from common.errors import XpydError
from common.request import (
    EngineRequest,
    FinishReason,
    PooledOutput,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
    check_kind,
)
from common.waterfall import PREFILL


@dataclass(frozen=True, slots=True)
class Script:
    """What one request gets. `error` comes after the tokens, or at once if there are none."""

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    stop_token_id: int | None = None
    tokens_per_event: int = 1
    first_delay_s: float = 0.0
    delay_s: float = 0.0  # before every further event
    error: XpydError | None = None
    num_cached_tokens: int = 0


class ScriptedEngine:
    """An `EngineClient`. `scripts`: one script for all, or a function of the request."""

    def __init__(
        self,
        scripts: Script | Callable[[EngineRequest], Script],
        *,
        model: str = "scripted",
        max_model_len: int = 2048,
        pooled: PooledOutput | None = None,
    ) -> None:
        """`pooled`: it gives made-up vectors instead (`made_up_vector`), and nothing else."""
        self._scripts = scripts
        self._card = ModelCard(model, max_model_len, int(time.time()), pooled=pooled)
        self.ready = True
        self.requests: list[EngineRequest] = []  # in the order they came
        self.running: set[str] = set()
        self.aborted: list[str] = []  # closed before their last event

    def models(self) -> list[ModelCard]:
        return [self._card]

    def is_ready(self) -> bool:
        return self.ready

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        _check(request, self._card.max_model_len)
        if request.request_id in {known.request_id for known in self.requests}:
            raise AssertionError("request ids must be unique")
        self.requests.append(request)
        self.running.add(request.request_id)
        script = self._scripts if isinstance(self._scripts, Script) else self._scripts(request)
        pooled = self._card.pooled
        check_kind(request.is_pooled, pools=pooled is not None)
        try:
            if pooled is not None:
                vector = made_up_vector(request.prompt_token_ids, pooled.num_values)
                reason = FinishReason.STOP
                yield TokenEvent(request.request_id, 0, (), finish_reason=reason, vector=vector)
                return
            async for event in _play(script, request):
                yield event
        except GeneratorExit:
            self.aborted.append(request.request_id)
            raise
        except asyncio.CancelledError:
            self.aborted.append(request.request_id)
            raise
        finally:
            self.running.discard(request.request_id)


def made_up_vector(token_ids: Sequence[int], num_values: int) -> bytes:
    """float32, little-endian; the same for the same tokens."""
    state = zlib.crc32(repr(tuple(token_ids)).encode())
    values = [((state >> (n % 24)) % 251) / 125 - 1.0 for n in range(num_values)]
    return struct.pack(f"<{num_values}f", *values)


async def _play(script: Script, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
    sampling = request.sampling
    token_ids = script.token_ids[: sampling.max_tokens]
    is_cut = len(token_ids) < len(script.token_ids)
    reason = FinishReason.LENGTH if is_cut else script.finish_reason
    started = time.monotonic()
    for index in range(0, max(1, len(token_ids)), script.tokens_per_event):
        await asyncio.sleep(script.delay_s if index else script.first_delay_s)
        new = token_ids[index : index + script.tokens_per_event]
        is_last = index + len(new) == len(token_ids) and script.error is None
        if not new and script.error is not None:
            break
        yield TokenEvent(
            request_id=request.request_id,
            index=index,
            token_ids=new,
            logprobs=_logprobs(new, sampling),
            prompt_logprobs=_prompt_logprobs(request) if index == 0 else (),
            finish_reason=reason if is_last else None,
            stop_token_id=script.stop_token_id if is_last and not is_cut else None,
            num_cached_tokens=script.num_cached_tokens if index == 0 else 0,
            timings={PREFILL: time.monotonic() - started} if index == 0 else {},
        )
    if script.error is not None:
        raise script.error


def token_logprob(token_id: int, num_top: int) -> TokenLogprob:
    """Made up but fixed: the token is the likeliest, its successors follow."""
    logprob = -(token_id % 7 + 1) / 8
    top = tuple((token_id + rank, logprob - rank) for rank in range(num_top))
    return TokenLogprob(logprob, 1, top)


def _logprobs(token_ids: Sequence[int], asked: SamplingParams) -> tuple[TokenLogprob, ...]:
    if asked.logprobs is None:
        return ()
    named = tuple((i, -(i % 7 + 1) / 8) for i in asked.logprob_token_ids)
    found = [token_logprob(i, asked.logprobs) for i in token_ids]
    return tuple(TokenLogprob(p.logprob, p.rank, named or p.top) for p in found)


def _prompt_logprobs(request: EngineRequest) -> tuple[TokenLogprob | None, ...]:
    num_top = request.sampling.prompt_logprobs
    if num_top is None:
        return ()
    return (None, *(token_logprob(i, num_top) for i in request.prompt_token_ids[1:]))


def _check(request: EngineRequest, max_model_len: int) -> None:
    """What the front end promises about every request."""
    sampling = request.sampling
    least = 0 if request.is_pooled else 1
    assert least <= sampling.max_tokens <= max_model_len - len(request.prompt_token_ids)
    assert request.prompt_token_ids and all(i >= 0 for i in request.prompt_token_ids)
    assert -(1 << 63) <= sampling.seed < 1 << 63
    assert 0 <= sampling.temperature <= 2 and 0 < sampling.top_p <= 1
    assert sampling.top_k >= 0 and 0 <= sampling.min_p <= 1
    assert sampling.min_tokens <= sampling.max_tokens
    assert not request.output_token_ids
