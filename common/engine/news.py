"""What a sequence tells after a step, as an event."""

from __future__ import annotations

from common import waterfall
from common.engine.sequence import Sequence
from common.request import FinishReason, TokenEvent, TokenLogprob


def token_event(
    sequence: Sequence,
    tokens: tuple[int, ...],
    logprobs: tuple[TokenLogprob, ...],
    eos_token_ids: frozenset[int],
    now: float,
) -> TokenEvent:
    """Of a sequence whose `tokens` have just been appended."""
    reason = sequence.finish_reason()
    index = sequence.num_outputs - len(tokens)
    is_first = index == len(sequence.request.output_token_ids)
    return TokenEvent(
        sequence.request_id,
        index,
        tokens,
        logprobs,
        tuple(sequence.prompt_logprobs) if is_first and sequence.wants_prompt_logprobs else (),
        reason,
        sequence.stop_token_id(eos_token_ids) if reason is FinishReason.STOP else None,
        sequence.num_cached_tokens,
        timings(sequence, now) if is_first else {},
    )


def vector_event(sequence: Sequence, vector: bytes, now: float) -> TokenEvent:
    """The one and last of a request for a vector."""
    return TokenEvent(
        sequence.request_id,
        0,
        (),
        finish_reason=FinishReason.STOP,
        num_cached_tokens=sequence.num_cached_tokens,
        timings=timings(sequence, now),
        vector=vector,
    )


def timings(sequence: Sequence, now: float) -> dict[str, float]:
    """Seconds until its first step, and from there until `now`; nothing if it has had none."""
    if sequence.started_at is None:
        return {}
    queue, step = (
        (waterfall.DECODE_QUEUE, waterfall.FIRST_STEP)
        if sequence.is_adopted
        else (waterfall.PREFILL_QUEUE, waterfall.PREFILL)
    )
    return {queue: sequence.started_at - sequence.added_at, step: now - sequence.started_at}
