"""Model directories of a stated shape: a config, a tokenizer and, for peers that know no
`--load-format dummy`, random weights.

Knows no server. The tokenizer is the bundled model's with as many words more as the vocabulary
needs, so that every token is text.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

TOKENIZER_OF = Path(__file__).parents[1] / "models" / "xpyd-demo"
INITIAL_DEVIATION = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder like Qwen2's, or without biases like Llama's; tied embeddings, in bfloat16."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int = 32_000
    max_len: int = 8192
    has_bias: bool = True  # of query, key and value: Qwen2's, else Llama's network

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of the linear maps of one layer, as fused in most engines."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return (
            (qkv, self.hidden),
            (self.hidden, self.hidden),
            (2 * self.feed_forward, self.hidden),
            (self.hidden, self.feed_forward),
        )

    @property
    def num_weights(self) -> int:
        """Of the layers' matrices and the head: what a decode step reads."""
        return self.layers * sum(a * b for a, b in self.matrices) + self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


# 0.4 billion weights, the layers of Qwen2.5-0.5B; and two so small that all but compute shows.
MEDIUM = Shape(layers=24, hidden=896, heads=14, kv_heads=2, feed_forward=4864)
SMALL = Shape(layers=6, hidden=256, heads=4, kv_heads=2, feed_forward=1024, vocab=16_000)
TINY = Shape(
    layers=8, hidden=256, heads=4, kv_heads=2, feed_forward=768, vocab=3072, has_bias=False
)


def write_model(directory: Path, shape: Shape) -> Path:
    """Without weights."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM" if shape.has_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if shape.has_bias else "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(TOKENIZER_OF / "tokenizer_config.json", directory / "tokenizer_config.json")
    tokenizer = json.loads((TOKENIZER_OF / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"\u0120word{number}": number for number in range(len(words), shape.vocab)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def write_weights(directory: Path, shape: Shape, seed: int = 0) -> None:
    """Random ones beside the config, named as Hugging Face names them."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)

    def matrix(out: int, into: int) -> torch.Tensor:
        drawn = torch.empty(out, into).normal_(0.0, INITIAL_DEVIATION, generator=random)
        return drawn.to(torch.bfloat16)

    def ones() -> torch.Tensor:
        return torch.ones(shape.hidden, dtype=torch.bfloat16)

    kv = shape.kv_heads * shape.head_dim
    weights = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden)}
    for number in range(shape.layers):
        at = f"model.layers.{number}"
        for name, size in (("q", shape.hidden), ("k", kv), ("v", kv)):
            weights[f"{at}.self_attn.{name}_proj.weight"] = matrix(size, shape.hidden)
            if shape.has_bias:
                weights[f"{at}.self_attn.{name}_proj.bias"] = matrix(1, size)[0]
        weights[f"{at}.self_attn.o_proj.weight"] = matrix(shape.hidden, shape.hidden)
        for name in ("gate", "up"):
            weights[f"{at}.mlp.{name}_proj.weight"] = matrix(shape.feed_forward, shape.hidden)
        weights[f"{at}.mlp.down_proj.weight"] = matrix(shape.hidden, shape.feed_forward)
        weights[f"{at}.input_layernorm.weight"] = ones()
        weights[f"{at}.post_attention_layernorm.weight"] = ones()
    weights["model.norm.weight"] = ones()
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
