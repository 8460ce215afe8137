"""What LoRA adapters cost: steps of a network with them beside the same steps without.

    python -m benchmarks.lora --rounds 7

The model alone, random weights in the layers of Qwen2.5-0.5B: no scheduler, sampler or server.
Rounds take the variants in turn, so that a ratio compares neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.made_model import MEDIUM, write_model
from benchmarks.percentiles import median
from common.model.inputs import ForwardInputs
from common.model.llama import Llama
from common.model.loader import load_model
from common.model.lora.adapter import Adapter, AdapterRows, build_adapter
from common.model.lora.tensors import modules_of

BLOCK = 32
CONTEXT = 256  # tokens that a decode step has behind it
ROWS = 16
CHUNK = 256


def made_adapter(model: Llama, rank: int, seed: int) -> Adapter:
    """All modules of all layers."""
    spec, shape = model.spec, model.spec.llama
    assert shape is not None
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) * 0.01

    pairs = {
        (layer, name): (draw(rank, module.inputs), draw(module.outputs, rank))
        for layer in range(spec.num_layers)
        for name, module in modules_of(spec, shape).items()
    }
    return build_adapter(f"{seed}", pairs, 1.0, spec, shape, torch.device("cpu"))


def step_inputs(num_seqs: int, per_seq: int, context: int) -> ForwardInputs:
    """`num_seqs` sequences that compute their last `per_seq` of `context` tokens."""
    blocks = -(-context // BLOCK)
    tables = torch.arange(num_seqs * blocks, dtype=torch.int32).view(num_seqs, blocks)
    positions = torch.arange(context - per_seq, context).repeat(num_seqs)
    owners = torch.arange(num_seqs).repeat_interleave(per_seq)
    at = tables[owners, positions // BLOCK].long()
    ends = torch.arange(1, num_seqs + 1) * per_seq
    return ForwardInputs(
        token_ids=torch.arange(num_seqs * per_seq) % 1000,
        positions=positions,
        slots=at * BLOCK + positions % BLOCK,
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.long), ends]).int(),
        context_lens=torch.full((num_seqs,), context, dtype=torch.int32),
        block_tables=tables,
        logits_rows=ends - 1,
        max_query_len=per_seq,
        max_context_len=context,
    )


def variants(adapters: list[Adapter], num_rows: int) -> dict[str, tuple[AdapterRows, ...]]:
    size = num_rows // len(adapters)
    shares = [AdapterRows(a, slice(i * size, (i + 1) * size)) for i, a in enumerate(adapters)]
    return {
        "none": (),
        "one adapter": (AdapterRows(adapters[0], slice(0, num_rows)),),
        "one, half of the rows": (AdapterRows(adapters[0], slice(0, num_rows // 2)),),
        f"{len(adapters)} adapters": tuple(shares),
    }


def measure(
    run: Callable[[tuple[AdapterRows, ...]], object],
    cases: dict[str, tuple[AdapterRows, ...]],
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds, by case; one round more is run first and not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, adapters in cases.items():
            began = time.perf_counter()
            run(adapters)
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = write_model(Path(directory) / "model", MEDIUM)
        model = load_model(path, load_format="dummy", device=torch.device("cpu"))
    assert isinstance(model, Llama)
    spec = model.spec
    adapters = [made_adapter(model, arguments.rank, seed) for seed in range(4)]
    num_blocks = ROWS * (CONTEXT // BLOCK)
    shape = (num_blocks, spec.num_layers, 2, spec.num_kv_heads, BLOCK, spec.head_dim)
    cache = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
    for what, inputs in (
        (f"decode step of {ROWS}", step_inputs(ROWS, 1, CONTEXT)),
        (f"prefill chunk of {CHUNK}", step_inputs(1, CHUNK, CHUNK)),
    ):
        with torch.inference_mode():
            times = measure(
                lambda found, base=inputs: model.forward(_with(base, found), cache),  # type: ignore[misc]
                variants(adapters, len(inputs.token_ids)),
                arguments.rounds,
            )
        for name, seconds in times.items():
            ratios = sorted(s / n for s, n in zip(seconds, times["none"], strict=True))
            told = {"step": what, "adapters": name, "ms": round(median(seconds) * 1e3, 2)}
            told |= {"ratio": round(median(ratios), 3)}
            told |= {"range": [round(ratios[0], 3), round(ratios[-1], 3)]}
            print(json.dumps(told))


def _with(inputs: ForwardInputs, adapters: tuple[AdapterRows, ...]) -> ForwardInputs:
    return replace(inputs, adapters=adapters)


if __name__ == "__main__":
    main()
