"""Keys and values in eight bits, against transformers with a cache that rounds them likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from common.engine.interface import EngineSettings
from common.engine.kv_cache import KVCache, KVLayout, default_num_blocks, kv_fingerprint
from common.model.loader import load_model
from tests.common.model.oracle import make_model, oracle_logits, random_tokens, save
from tests.common.model.paged_driver import PagedDriver

SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


class RoundingCache(DynamicCache):
    """transformers' own, but what goes in has passed through eight bits."""

    def update(self, key_states: Tensor, value_states: Tensor, *rest: Any, **more: Any) -> Any:
        keys, values = (x.to(torch.float8_e4m3fn).float() for x in (key_states, value_states))
        return super().update(keys, values, *rest, **more)


def test_an_eight_bit_cache_equals_transformers_with_rounded_keys(tmp_path: Path) -> None:
    theirs = make_model("LlamaForCausalLM", SMALL)
    ours = load_model(save(theirs, tmp_path), dtype="float32", device=torch.device("cpu"))
    tokens = random_tokens(60, 101, seed=3)
    expected = theirs(torch.tensor([tokens]), past_key_values=RoundingCache()).logits[0]
    driver = PagedDriver(ours)
    driver.cache = driver.cache.to(torch.float8_e4m3fn)
    torch.testing.assert_close(driver.run(tokens, [33, 26, 1]), expected, rtol=1e-4, atol=1e-4)
    assert (expected - oracle_logits(theirs, tokens)).abs().max() > 1e-2, "rounding must show"


def test_an_eight_bit_cache_is_smaller_and_named(tmp_path: Path) -> None:
    model = load_model(
        save(make_model("LlamaForCausalLM", SMALL), tmp_path),
        dtype="float32",
        device=torch.device("cpu"),
    )
    wide, narrow = KVLayout.of(model.spec, 16), KVLayout.of(model.spec, 16, is_fp8=True)
    assert narrow.block_bytes * 4 == wide.block_bytes
    assert kv_fingerprint("m", wide, "k") != kv_fingerprint("m", narrow, "k")
    settings = EngineSettings(max_model_len=64)
    blocks = default_num_blocks(narrow, settings, kv_cache_memory=1 << 20, available_bytes=0)
    assert blocks == (1 << 20) // narrow.block_bytes
    cache = KVCache(narrow, 4, torch.device("cpu"))
    try:
        assert cache.tensor.dtype == torch.float8_e4m3fn and not cache.tensor.float().any()
    finally:
        cache.close()
