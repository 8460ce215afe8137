"""What the CPU engine is asked beside its peers, and what its answers come to: pure.

Knows no server and no clock. Prompts are random token ids, other ones each round, so that nobody
finds them in a cache.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.dataset import BenchRequest
from benchmarks.made_model import MEDIUM, TINY, Shape
from benchmarks.percentiles import median, percentile
from benchmarks.sample import Sample

FIRST_ID, LAST_ID = 10, 3000  # no special tokens, and within the smallest vocabulary


@dataclass(frozen=True, slots=True)
class Workload:
    what: str
    model: str
    shape: Shape
    input_len: int
    output_len: int
    streams: int  # at a time
    requests: int  # a round
    rounds: int

    def prompts(self, number: int, count: int | None = None) -> list[BenchRequest]:
        """Of one round; every side gets the same."""
        draw = random.Random(f"{self.what} {number}")
        return [
            BenchRequest(
                index,
                tuple(draw.choices(range(FIRST_ID, LAST_ID), k=self.input_len)),
                self.input_len,
                self.output_len,
            )
            for index in range(self.requests if count is None else count)
        ]


WORKLOADS = {
    "one-stream": Workload("0.4B, one stream, 512 in, 64 out", "medium", MEDIUM, 512, 64, 1, 2, 6),
    "eight-streams": Workload(
        "0.4B, 8 streams, 256 in, 64 out", "medium", MEDIUM, 256, 64, 8, 8, 5
    ),
    "long-prompts": Workload("0.4B, 2 streams, 2048 in, 8 out", "medium", MEDIUM, 2048, 8, 2, 4, 4),
    "many-small": Workload("7M, 32 streams, 64 in, 64 out", "tiny", TINY, 64, 64, 32, 320, 5),
    "one-small": Workload("7M, one stream, 64 in, 64 out", "tiny", TINY, 64, 64, 1, 20, 5),
    "int8": Workload("0.4B, one stream, 64 in, 64 out", "medium", MEDIUM, 64, 64, 1, 3, 6),
}


def summarize(samples: Sequence[Sample], wall_s: float, cpu_s: float) -> dict[str, float]:
    """One side's round, in milliseconds and per second. Raises RuntimeError if a request failed or
    was cut short: such a round is no measurement."""
    for sample in samples:
        if sample.error or sample.output_tokens != sample.wanted_tokens:
            raise RuntimeError(sample.error or f"{sample.output_tokens} tokens came")
    tokens = sum(sample.output_tokens for sample in samples)
    gaps = sorted(gap for sample in samples for gap in sample.itls_s)
    ttfts = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    tpots = [sample.tpot_s for sample in samples if sample.tpot_s is not None]
    return {
        "ttft_ms": median(ttfts) * 1e3,
        "itl_p50_ms": percentile(gaps, 50) * 1e3,
        "itl_p99_ms": percentile(gaps, 99) * 1e3,
        "tpot_ms": median(tpots) * 1e3,
        "e2e_ms": median([sample.e2el_s for sample in samples]) * 1e3,
        "wall_s": wall_s,
        "requests_per_s": len(samples) / wall_s,
        "tokens_per_s": tokens / wall_s,
        "cpu_ms_per_token": cpu_s / tokens * 1e3,
    }


def floors(workload: Workload, bytes_per_s: float, flops: float) -> dict[str, float]:
    """What the machine allows: the prompts' products at its peak, the weights at its bandwidth."""
    shape, prompt = workload.shape, workload.input_len
    in_layers = shape.num_weights - shape.vocab * shape.hidden
    products = 2 * in_layers * prompt + 2 * shape.vocab * shape.hidden
    attention = shape.layers * 2 * shape.hidden * prompt * prompt
    prompt_s = (products + attention) / flops
    context = prompt + workload.output_len / 2
    read = shape.num_weights * 2 + workload.streams * context * shape.kv_bytes_per_token
    step_s = read / bytes_per_s
    return {
        "ttft_ms": prompt_s * 1e3,
        "itl_p50_ms": step_s * 1e3,
        "wall_s": workload.requests * prompt_s
        + workload.requests / workload.streams * workload.output_len * step_s,
    }
