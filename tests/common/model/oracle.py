"""Test support: small random models made by transformers, whose own eager forward is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor


def make_model(architecture: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A random transformers model in float32 in which every weight matters.

    A fresh initialisation would not do: its biases are zero, its norm weights one, and its
    attention nearly uniform, so that a mistake in any of them would not show.
    """
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**settings)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 * 1.5)
            else:
                parameter.add_(noise * 0.2)
    return model.requires_grad_(False)


def save(model: Any, path: Path, shard_size: str = "1GB") -> Path:
    model.save_pretrained(path, max_shard_size=shard_size)
    return path


def oracle_logits(model: Any, tokens: list[int]) -> Tensor:
    """[tokens, vocab] float32 of one whole sequence, without a cache."""
    out: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return out.float()


def oracle_greedy(model: Any, prompt: list[int], generated: list[int]) -> list[int]:
    """What the oracle would choose at each step while it has chosen `generated` so far.

    Equal to `generated` if and only if that is the oracle's own greedy continuation.
    """
    choices = oracle_logits(model, prompt + generated).argmax(-1)[len(prompt) - 1 : -1]
    found: list[int] = choices.tolist()
    return found


def random_tokens(count: int, vocab_size: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(vocab_size, (count,), generator=generator).tolist()
    return found
