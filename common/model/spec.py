"""What a model is, as data: known before any tensor exists. Knows no torch and reads no file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.model.rope_spec import RopeSpec

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What generation_config.json recommends; None: it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """What `llama.py` needs beyond `ModelSpec` to build the network."""

    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMS norm of each query and key head before it is turned
    windows: tuple[int | None, ...]  # per layer: a query at p sees keys in (p - window, p]
    initializer_range: float


PoolingMethod = Literal["last", "mean", "cls"]  # which tokens' vectors make the text's
Runner = Literal["auto", "generate", "pooling"]


@dataclass(frozen=True, slots=True)
class Pooling:
    """What a model that does not generate gives for a text."""

    method: PoolingMethod
    is_normalized: bool  # are its vectors meant to have length 1?
    labels: tuple[str, ...] = ()  # of a classifier's scores; (): the vector is an embedding
    can_shorten: bool = False  # do the first numbers of an embedding stand alone?


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and facts of a causal language model. `dtype` is of weights and KV cache alike."""

    architecture: str
    dtype: str  # one of DTYPES
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    default_sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    llama: LlamaShape | None = None  # None: runs through transformers
    pooling: Pooling | None = None  # None: it generates
