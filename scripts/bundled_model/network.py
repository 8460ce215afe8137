"""The network being trained: a compact Llama whose parameter names are Hugging Face's.

It knows tensors only: no tokenizer, no data, no files. Weights are float32 masters; the matrix
products run in bfloat16 under autocast, several times faster on CPUs with AVX512-BF16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On one AVX512 core plain products beat PyTorch's tiled attention up to about this many tokens
# (forward and backward at 256 tokens: 5800 against 4500 tokens/s for the whole network).
EXPLICIT_UP_TO = 1024


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """Sizes of the network; the defaults are the bundled model's."""

    vocab_size: int = 3072
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_position: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rope_tables(shape: NetworkShape) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [max_position, head_dim], both halves alike as in Llama."""
    exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(shape.max_position).float(), shape.rope_theta**-exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x [rows, heads, tokens, head_dim]; cos, sin [tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by plain matrix products.

    q [rows, heads, tokens, head_dim], k and v [rows, kv_heads, tokens, head_dim]; result like q.
    The query heads of one group are stacked, so K and V are not repeated.
    """
    rows, heads, tokens, head_dim = q.shape
    groups = heads // k.shape[1]
    stacked = (q * head_dim**-0.5).reshape(rows, -1, groups * tokens, head_dim)
    hidden = torch.full((tokens, tokens), float("-inf"), dtype=q.dtype).triu(1).repeat(groups, 1)
    weights = torch.softmax(stacked @ k.transpose(-1, -2) + hidden, dim=-1)
    return (weights.to(v.dtype) @ v).view(rows, heads, tokens, head_dim)


def attend_in_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by PyTorch's tiled kernel, which never holds all weights at once."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query_size = shape.num_heads * shape.head_dim
        kv_size = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, tokens, hidden] to the same shape."""
        rows, tokens, _ = x.shape
        q, k, v = (
            projection(x).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = attend(q, k, v) if tokens <= EXPLICIT_UP_TO else attend_in_tiles(q, k, v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, tokens, hidden] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Everything below the output projection; named `model` in the checkpoint."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)


class Network(nn.Module):
    """A Llama with tied embeddings."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos.bfloat16(), persistent=False)
        self.register_buffer("sin", sin.bfloat16(), persistent=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """Normalised last hidden states [rows, tokens, hidden] of ids [rows, tokens]."""
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        cos, sin = cos[: ids.shape[1]], sin[: ids.shape[1]]
        x: Tensor = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.model.norm(x)
        return out

    def loss(self, ids: Tensor, is_target: Tensor) -> Tensor:
        """Mean cross entropy, in nats, over the tokens marked in is_target.

        ids, is_target: [rows, tokens]; a token is predicted from those before it. Only marked
        positions are projected to the vocabulary: that is most of the saving over a stock Llama.
        """
        states = self.hidden(ids)[:, :-1][is_target[:, 1:]]
        logits = F.linear(states, self.model.embed_tokens.weight)
        return F.cross_entropy(logits.float(), ids[:, 1:][is_target[:, 1:]])

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], max_new: int, stop: frozenset[int]) -> list[int]:
        """Greedy continuation of prompt, without a cache; ends after a token in stop."""
        ids = list(prompt)
        while len(ids) - len(prompt) < max_new:
            state = self.hidden(torch.tensor([ids]))[0, -1]
            logits = F.linear(state, self.model.embed_tokens.weight)
            ids.append(int(logits.argmax()))
            if ids[-1] in stop:
                break
        return ids[len(prompt) :]
