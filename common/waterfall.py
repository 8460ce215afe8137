"""The stages of a request until its first and its second token, by name and in order.

Each is a duration on one machine's clock; none is a difference of two clocks. What is measured
nowhere (links, wake-ups) is what is left of a whole that the front end measures: `deliver` of the
first token's time, and the rest of `handover`. `TokenEvent.timings` carries them between processes.
"""

from __future__ import annotations

from collections.abc import Mapping

# They add up to "ttft".
TOKENIZE = "tokenize"  # received → token ids: reading, checking, template, tokenizer
PROXY_QUEUE = "proxy_queue"  # waiting for admission and for an instance; failed attempts, too
ROUTE = "route"  # choosing that instance
PREFILL_QUEUE = "prefill_queue"  # in the engine, before its first step
PREFILL = "prefill"  # first step begun → first token sampled
DELIVER = "deliver"  # the rest: links, event loops, detokenizer
TO_FIRST = (TOKENIZE, PROXY_QUEUE, ROUTE, PREFILL_QUEUE, PREFILL, DELIVER)
TTFT = "ttft"

# Of a request whose KV was handed over. Within "handover": exposed, queue, step and links.
TRANSFER = "transfer"  # copying, most of it while prefill still computed
EXPOSED = "transfer_exposed"  # prefill done → KV on the decode instance
DECODE_QUEUE = "decode_queue"  # KV confirmed → first step begun
FIRST_STEP = "first_step"  # that step
HANDOVER = "handover"  # first token → second token, where the client is
AFTER_FIRST = (TRANSFER, EXPOSED, DECODE_QUEUE, FIRST_STEP, HANDOVER)
KV_BYTES = "kv_bytes"  # copied; what the decode instance had cached is not
KV_BLOCKS = "kv_blocks"
COUNTS = (KV_BYTES, KV_BLOCKS)

_TOO_MUCH = 1e15

STAGES = (*TO_FIRST, *AFTER_FIRST)


def until_first(
    told: Mapping[str, float], tokenize_s: float, waited_s: float, ttft_s: float
) -> dict[str, float]:
    """All stages until the first token, and their sum.

    told:      by the proxy's relay and by the instance
    waited_s:  for admission, before the relay had it
    """
    found = {TOKENIZE: tokenize_s, PROXY_QUEUE: 0.0}
    found |= _sane(told, (PROXY_QUEUE, ROUTE, PREFILL_QUEUE, PREFILL))
    found[PROXY_QUEUE] += max(0.0, waited_s)
    found[DELIVER] = max(0.0, ttft_s - sum(found.values()))
    return {**found, TTFT: ttft_s}


def after_first(told: Mapping[str, float], handover_s: float) -> dict[str, float]:
    """The stages of a hand-over; {} if `told` speaks of none."""
    if TRANSFER not in told:
        return {}
    names = (TRANSFER, EXPOSED, DECODE_QUEUE, FIRST_STEP, *COUNTS)
    return _sane(told, names) | {HANDOVER: handover_s}


def server_timing(stages: Mapping[str, float]) -> str:
    """As the value of a `Server-Timing` header: milliseconds."""
    entries = []
    for name, seconds in stages.items():
        if name in COUNTS:
            continue
        entry = f"{name};dur={seconds * 1000:.3f}"
        if name == TRANSFER and KV_BYTES in stages:
            blocks = int(stages.get(KV_BLOCKS, 0))
            entry += f';desc="{int(stages[KV_BYTES])} bytes, {blocks} blocks"'
        entries.append(entry)
    return ", ".join(entries)


def in_milliseconds(stages: Mapping[str, float]) -> dict[str, float | int]:
    """As the object in the last chunk of a stream."""
    return {
        **{f"{name}_ms": round(s * 1000, 3) for name, s in stages.items() if name not in COUNTS},
        **{name: int(stages[name]) for name in COUNTS if name in stages},
    }


def _sane(told: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    """What another process tells may be nonsense; its names become labels, its values sums."""
    return {name: told[name] for name in names if 0.0 <= told.get(name, -1.0) < _TOO_MUCH}
