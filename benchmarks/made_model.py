"""Model directories of a stated shape for `--load-format dummy`: a config and a tokenizer.

Knows no server. The tokenizer is the bundled model's, whose ids are the first of any larger
vocabulary.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

TOKENIZER_OF = Path(__file__).parents[1] / "models" / "xpyd-demo"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2-like decoder with tied embeddings, in bfloat16."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int = 32_000
    max_len: int = 8192

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


# 0.4 billion weights, the layers of Qwen2.5-0.5B; and one so small that all but compute shows.
MEDIUM = Shape(layers=24, hidden=896, heads=14, kv_heads=2, feed_forward=4864)
SMALL = Shape(layers=6, hidden=256, heads=4, kv_heads=2, feed_forward=1024, vocab=16_000)


def write_model(directory: Path, shape: Shape) -> Path:
    directory.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
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
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER_OF / name, directory / name)
    return directory
