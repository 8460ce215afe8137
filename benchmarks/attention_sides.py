"""One side of `attention_cpu.py` in a process of its own: our paged attention, or vLLM's kernel.

Commands come as lines of JSON on stdin, answers go out the same way. Both sides make the same
numbers from the same seed and lay them out as their engine does; a call is one layer's attention.
Run by the peer's interpreter it imports nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM = 14, 2, 64
LAYERS = 6  # each with its own cache, so that no call finds the last one's keys at hand
OUR_BLOCK, PEER_BLOCK = 32, 128  # what either engine takes by default on a CPU

Run = Callable[[int], Tensor]  # layer → [tokens, heads, head_dim]


@dataclass(frozen=True)
class Case:
    """`seqs` sequences of `context` cached tokens, the last `new` of which ask."""

    seqs: int
    new: int
    context: int

    @property
    def kv_bytes(self) -> int:
        return self.seqs * self.context * KV_HEADS * HEAD_DIM * 2 * 2

    @property
    def flops(self) -> int:
        """Of both products, over the keys that are seen."""
        seen = self.seqs * sum(self.context - i for i in range(self.new))
        return 4 * seen * HEADS * HEAD_DIM


CASES = {
    "decode 32 x 2048": Case(32, 1, 2048),
    "decode 8 x 512": Case(8, 1, 512),
    "decode 1 x 2048": Case(1, 1, 2048),
    "prefill 512 on 2048": Case(1, 512, 2048),
    "prefill 512 alone": Case(1, 512, 512),
}


@dataclass(frozen=True)
class Inputs:
    query: Tensor  # [tokens, heads, head_dim]
    keys: Tensor  # [layers, seqs, context, kv_heads, head_dim]
    values: Tensor
    cu_seqlens: Tensor
    context_lens: Tensor

    @classmethod
    def of(cls, case: Case) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(torch.bfloat16)

        cached = (LAYERS, case.seqs, case.context, KV_HEADS, HEAD_DIM)
        starts = torch.arange(case.seqs + 1, dtype=torch.int32) * case.new
        contexts = torch.full((case.seqs,), case.context, dtype=torch.int32)
        query = draw(case.seqs * case.new, HEADS, HEAD_DIM)
        return cls(query, draw(*cached), draw(*cached), starts, contexts)

    def tables(self, block_size: int) -> Tensor:
        """[seqs, blocks]: the blocks of all sequences in random order."""
        per_seq = self.keys.shape[2] // block_size
        order = torch.randperm(
            self.keys.shape[1] * per_seq, generator=torch.Generator().manual_seed(1)
        )
        return order.view(-1, per_seq).to(torch.int32)


def ours(inputs: Inputs, threads: int) -> Run:
    from kernels import native_library
    from kernels.attention import paged_attention

    native_library.set_num_threads(threads)
    tables = inputs.tables(OUR_BLOCK)
    cache = torch.zeros(tables.numel(), LAYERS, 2, KV_HEADS, OUR_BLOCK, HEAD_DIM).bfloat16()
    for side, source in enumerate((inputs.keys, inputs.values)):
        # [layers, blocks in token order, tokens, kv_heads, head_dim]
        blocks = source.view(LAYERS, -1, OUR_BLOCK, KV_HEADS, HEAD_DIM)
        cache[tables.flatten().long(), :, side] = blocks.permute(1, 0, 3, 2, 4)

    def run(layer: int) -> Tensor:
        return paged_attention(
            inputs.query,
            cache[:, layer, 0],
            cache[:, layer, 1],
            tables,
            inputs.cu_seqlens,
            inputs.context_lens,
            HEAD_DIM**-0.5,
        )

    return run


def vllm(inputs: Inputs, threads: int) -> Run:
    import vllm._C  # type: ignore[import-not-found]  # noqa: F401

    ops = torch.ops._C
    torch.set_num_threads(threads)
    isa, new = "vec", inputs.query.shape[0] // len(inputs.context_lens)
    tables = inputs.tables(PEER_BLOCK)
    shape = (tables.numel(), KV_HEADS, PEER_BLOCK * 2, HEAD_DIM)
    caches = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(LAYERS)]
    slots = (tables.long()[:, :, None] * PEER_BLOCK + torch.arange(PEER_BLOCK)).flatten()
    for layer, cache in enumerate(caches):
        rows = [x[layer].reshape(-1, KV_HEADS, HEAD_DIM) for x in (inputs.keys, inputs.values)]
        keys, values = cache.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(*rows, keys, values, slots, isa, 1.0, 1.0, "auto")
    out = torch.empty_like(inputs.query)
    starts, contexts = inputs.cu_seqlens, inputs.context_lens
    sizes = (len(contexts), HEADS, KV_HEADS, HEAD_DIM, contexts, torch.bfloat16, starts)
    plan = ops.get_scheduler_metadata(*sizes, True, -1, isa, new == 1, None, "auto")

    def run(layer: int) -> Tensor:
        keys, values = caches[layer].chunk(2, dim=2)
        ops.cpu_attention_with_kv_cache(
            inputs.query,
            keys,
            values,
            out,
            starts,
            contexts,
            HEAD_DIM**-0.5,
            True,
            None,
            -1,
            tables,
            0.0,
            plan,
            None,
            None,
            1.0,
            1.0,
            "auto",
        )
        return out

    return run


SIDES = {"ours": ours, "vllm": vllm}


def _serve(make: Callable[[Inputs, int], Run], threads: int) -> None:
    runs: dict[str, Run] = {}
    for line in sys.stdin:
        command = json.loads(line)
        name = command["case"]
        if name not in runs:
            runs[name] = make(Inputs.of(CASES[name]), threads)
            for layer in range(LAYERS):
                runs[name](layer)
        if path := command.get("output"):
            runs[name](1).float().numpy().tofile(path)
        began = time.perf_counter()
        for i in range(command["calls"]):
            runs[name](i % LAYERS)
        print(json.dumps({"seconds": (time.perf_counter() - began) / command["calls"]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times attention as told on stdin.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(options.threads)
    _serve(SIDES[options.side], options.threads)


if __name__ == "__main__":
    main()
