"""The native family against transformers' own forward, on small random models in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from common.model.inputs import ForwardInputs
from common.model.llama import Llama
from common.model.loader import CausalLM, load_model
from kernels import native_library
from tests.common.model.oracle import (
    make_model,
    oracle_greedy,
    oracle_logits,
    random_tokens,
    save,
)
from tests.common.model.paged_driver import PagedDriver

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("LlamaForCausalLM", {"num_key_value_heads": 6}),
    "llama-3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaForCausalLM", {"head_dim": 20, "num_key_value_heads": 3}),
    "llama-linear": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}},
    ),
    "llama-yarn": ("LlamaForCausalLM", {"rope_parameters": YARN_ROPE}),
    "llama-yarn-mscale": (
        "LlamaForCausalLM",
        {
            "rope_parameters": YARN_ROPE
            | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 16, "truncate": False}
        },
    ),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 16}),
    "mistral-no-window": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biases": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(transformers model, the directory it was saved to)"""
    architecture, settings = CASES[request.param]
    oracle = make_model(architecture, SMALL | settings)
    return oracle, save(oracle, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pair(saved: tuple[Any, Path]):
    """(transformers model, our model) with the same weights."""
    oracle, path = saved
    return oracle, load_model(path, device=CPU)


def test_logits_of_a_chunked_prompt(pair: tuple[Any, CausalLM]):
    oracle, model = pair
    tokens = random_tokens(90, 101, seed=1)
    logits = PagedDriver(model).run(tokens, [1, 30, 7, 50, 1, 1])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, oracle_logits(oracle, tokens), atol=1e-4, rtol=0)


def test_logits_in_a_mixed_batch_with_a_prefix_hit(pair: tuple[Any, CausalLM]):
    oracle, model = pair
    driver = PagedDriver(model, block_size=8)
    first = driver.add(random_tokens(70, 101, seed=2))
    driver.step([(first, 60)])
    sharing = driver.add(first.tokens[:45] + random_tokens(20, 101, seed=3), prefix_of=first)
    fresh = driver.add(random_tokens(33, 101, seed=4))
    assert sharing.computed == 40
    work = [(first, 10), (sharing, 25), (fresh, 33)]
    for (sequence, count), logits in zip(work, driver.step(work), strict=True):
        expected = oracle_logits(oracle, sequence.tokens)[-count:]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_greedy_tokens(pair: tuple[Any, CausalLM]):
    oracle, model = pair
    prompt = random_tokens(11, 101, seed=5)
    generated = PagedDriver(model).greedy(prompt, 64)
    assert generated == oracle_greedy(oracle, prompt, generated)


def in_dtype(path: Path, dtype: str) -> CausalLM:
    if dtype == "int8":
        return load_model(path, dtype="bfloat16", quantization="int8", device=CPU)
    return load_model(path, dtype=dtype, device=CPU)


@dataclass(frozen=True)
class ByOperations:
    """The same model, run operation by operation."""

    model: Llama

    @property
    def spec(self):
        return self.model.spec

    def forward(self, inputs: ForwardInputs, cache: Tensor) -> Tensor:
        return self.model.forward_by_operations(inputs, cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("every_row", [True, False])
def test_one_call_is_the_operations_bit_by_bit(
    saved: tuple[Any, Path], dtype: str, every_row: bool
):
    if native_library.status().face != "native":
        pytest.skip("no native kernels here: there is only the one way")
    model = in_dtype(saved[1], dtype)
    assert isinstance(model, Llama)
    drivers = [PagedDriver(model), PagedDriver(ByOperations(model))]
    found = []
    for driver in drivers:
        long, short = (driver.add(random_tokens(n, 101, seed=n)) for n in (70, 9))
        steps = [[(long, 31)], [(long, 38), (short, 8)], [(short, 1), (long, 1)]]
        found.append(torch.cat([row for work in steps for row in driver.step(work, every_row)]))
    assert torch.equal(*found)
    assert torch.equal(drivers[0].cache, drivers[1].cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_logits_do_not_depend_on_the_batch(saved: tuple[Any, Path], dtype: str):
    """Bit for bit: alone, cut otherwise, in other blocks of another size, beside others."""
    model = in_dtype(saved[1], dtype)
    tokens = random_tokens(90, 101, seed=1)
    alone = PagedDriver(model).run(tokens, [90])
    chunked = PagedDriver(model, seed=1, block_size=8).run(tokens, [1, 30, 7, 50, 1, 1])
    driver = PagedDriver(model, seed=2)
    other, same = driver.add(random_tokens(50, 101, seed=2)), driver.add(tokens)
    driver.step([(other, 20)])
    beside = torch.cat([driver.step([(other, 10), (same, n)])[1] for n in (40, 1, 49)])
    assert torch.equal(alone, chunked)
    assert torch.equal(alone, beside)


def test_only_the_wanted_rows_have_logits(pair: tuple[Any, CausalLM]):
    _, model = pair
    tokens = random_tokens(12, 101, seed=6)
    driver = PagedDriver(model)
    (every,) = driver.step([(driver.add(tokens), 12)])
    (last,) = driver.step([(driver.add(tokens), 12)], every_row=False)
    assert last.shape == (1, 101)
    torch.testing.assert_close(last[0], every[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(tmp_path: Path, dtype: str):
    """Weights and KV of the smaller dtype; the difference is that dtype's rounding."""
    oracle = make_model("LlamaForCausalLM", SMALL)
    model = load_model(save(oracle, tmp_path), dtype=dtype, device=CPU)
    driver = PagedDriver(model)
    assert str(driver.cache.dtype) == f"torch.{dtype}"
    tokens = random_tokens(60, 101, seed=7)
    logits, expected = driver.run(tokens, [40, 20]), oracle_logits(oracle, tokens)
    tolerance = {"bfloat16": 0.03, "float16": 0.004}[dtype] * expected.std()
    assert (logits - expected).pow(2).mean().sqrt() < tolerance


def test_int8_weights_are_those_of_the_checkpoint_rounded(tmp_path: Path):
    """The oracle gets the rounded weights; what is multiplied with is all that changes."""
    oracle = make_model("LlamaForCausalLM", SMALL)
    model = load_model(save(oracle, tmp_path), quantization="int8", device=CPU)
    tokens = random_tokens(60, 101, seed=7)
    logits = PagedDriver(model).run(tokens, [40, 20])
    plain = oracle_logits(oracle, tokens)
    for module in oracle.modules():
        if isinstance(module, torch.nn.Linear):
            scale = module.weight.data.abs().amax(1, keepdim=True) / 127
            module.weight = torch.nn.Parameter((module.weight.data / scale).round() * scale)
    torch.testing.assert_close(logits, oracle_logits(oracle, tokens), atol=1e-4, rtol=0)
    assert (logits - plain).abs().max() > 1e-3


def test_fp8_on_a_cpu_is_refused(tmp_path: Path):
    path = save(make_model("LlamaForCausalLM", SMALL), tmp_path)
    with pytest.raises(ConfigError, match="fp8 needs a GPU; on a CPU there is int8"):
        load_model(path, quantization="fp8", device=CPU)
