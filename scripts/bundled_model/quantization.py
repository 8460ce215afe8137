"""What int8 weights cost in accuracy: perplexity of the bundled model on text it never saw.

    python -m scripts.bundled_model.quantization

`asked` are answers to the phrasings that training held out, `new` are documents of the kind that
training draws, from a seed it never used; only the assistant's tokens count in both. Each way of
storing weights runs through our own model. The last rows ask transformers, in float32, what one
scale per output costs beside one per group of inputs, which our kernels do not offer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from common.model.loader import load_model
from common.model.step_memory import one_chunk
from scripts.bundled_model.documents import Document, compose, encode_turns
from scripts.bundled_model.evaluate import categories
from scripts.train_bundled_model import DEFAULT_OUTPUT

_SEED = 1_000_003
_NEW_TOKENS = 512  # of a document, at most
_BLOCK = 32
_CPU = torch.device("cpu")

Logits = Callable[[Tensor], Tensor]  # token ids [n] → [n, vocab] float32


def texts(tokenizer: Tokenizer, count: int) -> dict[str, list[Document]]:
    """`count` documents of either kind."""
    asked = [
        encode_turns(tokenizer, case)
        for category in categories()
        if "seen" not in category.name
        for case in category.cases
    ]
    rng = Random(_SEED)
    new = [compose(rng, tokenizer, _NEW_TOKENS, 0.0) for _ in range(count)]
    return {"asked": rng.sample(asked, min(count, len(asked))), "new": new}


def through_our_model(dtype: str, quantization: Any) -> Logits:
    model = load_model(DEFAULT_OUTPUT, dtype=dtype, quantization=quantization, device=_CPU)
    spec = model.spec

    def run(ids: Tensor) -> Tensor:
        inputs = one_chunk(len(ids), len(ids), _BLOCK, _CPU)
        inputs.token_ids.copy_(ids)
        shape = (spec.num_layers, 2, spec.num_kv_heads, _BLOCK, spec.head_dim)
        cache = torch.zeros(inputs.block_tables.shape[1], *shape, dtype=getattr(torch, dtype))
        return model.forward(inputs, cache)

    return run


def through_transformers(group: int | None) -> Logits:
    """Weights rounded to int8 with a scale per `group` inputs; 0: per output, None: not rounded."""
    model: Any = AutoModelForCausalLM.from_pretrained(DEFAULT_OUTPUT, dtype=torch.float32)
    model.eval()
    for module in model.modules():
        if group is not None and isinstance(module, nn.Linear):
            weight: Tensor = module.weight.data
            parts = weight.view(len(weight), -1, group or module.in_features)
            scale = parts.abs().amax(2, keepdim=True) / 127
            module.weight = nn.Parameter(((parts / scale).round() * scale).flatten(1))

    def run(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids[None]).logits[0]
        return logits

    return run


@torch.inference_mode()
def measure(logits: Logits, documents: list[Document]) -> dict[str, float]:
    """Perplexity of the targets, and how many of them were the most likely token."""
    loss, right, count = 0.0, 0, 0
    for document in documents:
        ids = torch.tensor(document.ids)
        counts = torch.tensor(document.is_target)[1:]
        scores, wanted = logits(ids)[:-1][counts].float(), ids[1:][counts]
        loss += float(functional.cross_entropy(scores, wanted, reduction="sum"))
        right += int((scores.argmax(1) == wanted).sum())
        count += len(wanted)
    return {"perplexity": math.exp(loss / count), "right": right / count, "tokens": count}


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity with and without int8 weights.")
    parser.add_argument("--documents", type=int, default=400, help="of either kind")
    parser.add_argument("--output", help="file for the results as JSON")
    options = parser.parse_args()
    found = texts(Tokenizer.from_file(str(DEFAULT_OUTPUT / "tokenizer.json")), options.documents)
    makers: dict[str, Callable[[], Logits]] = {
        "bfloat16": lambda: through_our_model("bfloat16", None),
        "bfloat16, int8 weights": lambda: through_our_model("bfloat16", "int8"),
        "float32": lambda: through_our_model("float32", None),
        "float32, int8 weights": lambda: through_our_model("float32", "int8"),
        "transformers, float32": lambda: through_transformers(None),
        "transformers, a scale per output": lambda: through_transformers(0),
        "transformers, a scale per 64 inputs": lambda: through_transformers(64),
    }
    print("| weights | " + " | ".join(f"{kind}: perplexity, right" for kind in found) + " |")
    print("|" + "---|" * (1 + len(found)))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, make in makers.items():
        logits = make()
        results[name] = {kind: measure(logits, documents) for kind, documents in found.items()}
        cells = [f"{r['perplexity']:.4f}, {r['right']:.2%}" for r in results[name].values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print({kind: int(r["tokens"]) for kind, r in results["bfloat16"].items()})
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
