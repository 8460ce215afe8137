"""Our paged attention, as transformers' attention interface wants it.

transformers calls the function below from inside each layer and gives it no room for our inputs, so
they are ambient: `running` is the only writer. What the function does not know it refuses: an
argument that is ignored (attention sinks, a position bias) would give wrong logits silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from common.model.inputs import ForwardInputs
from kernels.attention import paged_attention
from kernels.kv_store import store_kv

NAME = "xpyd_paged"

# Arguments that say nothing about the result: positions were applied before, outputs are not kept.
HARMLESS = frozenset({"position_ids", "use_cache", "output_attentions", "output_router_logits"})


class UnknownAttention(Exception):
    """The model asks for an attention that the paged kernel does not compute."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One forward pass: its inputs, its cache, and which layers have attended so far."""

    inputs: ForwardInputs
    cache: Tensor
    layers: list[int] = field(default_factory=list)


_PASS: ContextVar[_Pass] = ContextVar("xpyd_forward_pass")


@contextmanager
def running(inputs: ForwardInputs, cache: Tensor) -> Iterator[None]:
    """Inside the `with`, layers find `inputs` and `cache`; each must attend exactly once."""
    this = _Pass(inputs, cache)
    token = _PASS.set(this)
    try:
        yield
    finally:
        _PASS.reset(token)
    if sorted(this.layers) != list(range(cache.shape[1])):
        raise UnknownAttention(f"layers that used the paged cache: {this.layers}")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer's attention over the cache, after its new K and V are stored there.

    query:       [1, heads, tokens, head_dim]; all sequences of the batch packed in one row
    key, value:  [1, kv_heads, tokens, head_dim]
    returns      [1, tokens, heads, head_dim] and no weights
    """
    this = _PASS.get()
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [k for k, v in others.items() if k not in HARMLESS and v is not None]
    if attention_mask is not None or dropout or unknown or not causal:
        given = [*unknown, *(["a mask"] if attention_mask is not None else [])]
        raise UnknownAttention(f"attention with {given or 'dropout or without causality'}")
    layer: Any = module.layer_idx
    k_cache, v_cache = this.cache[:, layer, 0], this.cache[:, layer, 1]
    expected = (1, k_cache.shape[1], query.shape[2], k_cache.shape[3])
    if key.shape != expected or value.shape != expected:
        raise UnknownAttention(f"keys {tuple(key.shape)}, values {tuple(value.shape)}")
    this.layers.append(layer)
    new_k, new_v = key[0].transpose(0, 1), value[0].transpose(0, 1)
    store_kv(new_k.contiguous(), new_v.contiguous(), k_cache, v_cache, this.inputs.slots)
    mixed = paged_attention(
        query[0].transpose(0, 1).contiguous(),
        k_cache,
        v_cache,
        this.inputs.block_tables,
        this.inputs.cu_seqlens,
        this.inputs.context_lens,
        query.shape[3] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        max_query_len=this.inputs.max_query_len,
        max_context_len=this.inputs.max_context_len,
    )
    return mixed.unsqueeze(0), None


# No mask function is registered under this name: transformers then builds no masks at all.
AttentionInterface.register(NAME, attend)
