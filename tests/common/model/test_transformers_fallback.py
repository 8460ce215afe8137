"""Every architecture in `fallback_table.VERIFIED` against transformers' own eager forward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_kernels_available

from common.errors import ConfigError
from common.model.fallback_table import VERIFIED
from common.model.loader import load_model
from common.model.paged_interface import UnknownAttention, attend, running
from common.model.spec_reader import read_spec
from tests.common.model.oracle import (
    make_model,
    oracle_greedy,
    oracle_logits,
    random_tokens,
    save,
)
from tests.common.model.paged_driver import PagedDriver

CPU = torch.device("cpu")
MULTI_HEAD = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = MULTI_HEAD | {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXED = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

CASES: dict[str, dict[str, Any]] = {
    "ApertusForCausalLM": GROUPED | {"rope_parameters": {"rope_type": "default"}},
    "ArceeForCausalLM": GROUPED,
    "Cohere2ForCausalLM": GROUPED | MIXED,
    "CohereForCausalLM": GROUPED | {"use_qk_norm": True},
    "Ernie4_5ForCausalLM": GROUPED | {"head_dim": 8},
    "Exaone4ForCausalLM": GROUPED | MIXED,
    "GPT2LMHeadModel": MULTI_HEAD | {"scale_attn_by_inverse_layer_idx": True},
    "GPTBigCodeForCausalLM": MULTI_HEAD,
    "GPTNeoXForCausalLM": MULTI_HEAD | {"rotary_pct": 0.5},
    "Gemma2ForCausalLM": GROUPED
    | MIXED
    | {
        "head_dim": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 7.0,
        "query_pre_attn_scalar": 20,
    },
    "Gemma3ForCausalLM": GROUPED | MIXED | {"head_dim": 16},
    "GemmaForCausalLM": GROUPED | {"head_dim": 16},
    "Glm4ForCausalLM": GROUPED | {"head_dim": 8},
    "GlmForCausalLM": GROUPED | {"head_dim": 8},
    "GraniteForCausalLM": GROUPED
    | {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "GraniteMoeForCausalLM": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "HeliumForCausalLM": GROUPED | {"head_dim": 8},
    "HunYuanDenseV1ForCausalLM": GROUPED | {"head_dim": 8},
    "MinistralForCausalLM": GROUPED | MIXED | {"head_dim": 8},
    "MixtralForCausalLM": GROUPED | {"num_local_experts": 4, "sliding_window": 16},
    "NemotronForCausalLM": GROUPED,
    "OPTForCausalLM": MULTI_HEAD | {"ffn_dim": 64, "word_embed_proj_dim": 48},
    "Olmo2ForCausalLM": GROUPED,
    "Olmo3ForCausalLM": GROUPED | MIXED,
    "OlmoForCausalLM": GROUPED | {"clip_qkv": 1.5},
    "OlmoeForCausalLM": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "PersimmonForCausalLM": MULTI_HEAD,
    "Phi3ForCausalLM": GROUPED | {"sliding_window": 16},
    "PhiForCausalLM": GROUPED | {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "Qwen2MoeForCausalLM": GROUPED | EXPERTS | {"shared_expert_intermediate_size": 40},
    "Qwen3MoeForCausalLM": GROUPED | EXPERTS | {"head_dim": 16, "mlp_only_layers": [1]},
    "SeedOssForCausalLM": GROUPED | {"head_dim": 8},
    "SmolLM3ForCausalLM": GROUPED | {"no_rope_layer_interval": 2},
    "StableLmForCausalLM": GROUPED | {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "Starcoder2ForCausalLM": GROUPED | {"sliding_window": 16},
}


def test_every_verified_architecture_has_a_case():
    assert set(CASES) == set(VERIFIED)


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(transformers model, the directory it was saved to)"""
    oracle = make_model(request.param, CASES[request.param])
    return oracle, save(oracle, tmp_path_factory.mktemp("model"))


def test_logits_and_greedy_tokens(saved: tuple[Any, Path]):
    oracle, path = saved
    model = load_model(path, device=CPU)
    tokens = random_tokens(90, 101, seed=1)
    expected = oracle_logits(oracle, tokens)
    logits = PagedDriver(model).run(tokens, [1, 30, 7, 50, 1, 1])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    driver = PagedDriver(model, block_size=8)
    first, second = driver.add(random_tokens(50, 101, seed=2)), driver.add(tokens)
    driver.step([(first, 20), (second, 33)])
    shared = driver.add(tokens[:20] + first.tokens[:20], prefix_of=second)
    assert shared.computed == 16
    work = [(second, 57), (first, 30), (shared, 24)]
    for (sequence, count), part in zip(work, driver.step(work), strict=True):
        wanted = oracle_logits(oracle, sequence.tokens)[-count:]
        torch.testing.assert_close(part, wanted, atol=1e-4, rtol=0)

    prompt = random_tokens(11, 101, seed=5)
    generated = PagedDriver(model).greedy(prompt, 64)
    assert generated == oracle_greedy(oracle, prompt, generated)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_do_not_depend_on_the_batch(saved: tuple[Any, Path], dtype: str):
    _, path = saved
    model = load_model(path, dtype=dtype, device=CPU)
    tokens = random_tokens(90, 101, seed=1)
    alone = PagedDriver(model).run(tokens, [90])
    chunked = PagedDriver(model, seed=1, block_size=8).run(tokens, [1, 30, 7, 50, 1, 1])
    driver = PagedDriver(model, seed=2)
    other, same = driver.add(random_tokens(50, 101, seed=2)), driver.add(tokens)
    driver.step([(other, 20)])
    beside = torch.cat([driver.step([(other, 10), (same, n)])[1] for n in (40, 1, 49)])
    assert torch.equal(alone, chunked)
    assert torch.equal(alone, beside)


@pytest.mark.parametrize(
    "architecture", ["GptOssForCausalLM", "FalconForCausalLM", "BloomForCausalLM", "T5Model"]
)
def test_others_are_refused_with_what_is_supported(tmp_path: Path, architecture: str):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(ConfigError, match=f"{architecture} is not supported; .*Llama.*Gemma2"):
        read_spec(tmp_path)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path):
    config = {"architectures": ["MyModel"], "auto_map": {"AutoModelForCausalLM": "evil.MyModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="MyModel is not supported .*never run"):
        read_spec(tmp_path)


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    return save(make_model("Gemma3ForCausalLM", CASES["Gemma3ForCausalLM"]), tmp_path)


def test_a_config_that_attends_both_ways_is_refused(gemma: Path):
    edit_config(gemma, use_bidirectional_attention=True)
    with pytest.raises(ConfigError, match="Gemma3ForCausalLM with this config .* causality"):
        load_model(gemma, device=CPU)


def test_longrope_is_served_up_to_where_its_factors_change(tmp_path: Path):
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    settings = {"rope_parameters": rope, "original_max_position_embeddings": 128}
    oracle = make_model("Phi3ForCausalLM", GROUPED | settings)
    path = save(oracle, tmp_path)
    model = load_model(path, device=CPU)
    assert model.spec.max_model_len == 128
    tokens = random_tokens(128, 101, seed=1)
    logits = PagedDriver(model).run(tokens, [100, 28])
    torch.testing.assert_close(logits, oracle_logits(oracle, tokens), atol=1e-4, rtol=0)


def test_dynamic_rope_is_refused(tmp_path: Path):
    rope = {"rope_type": "dynamic", "factor": 2.0}
    path = save(make_model("OlmoForCausalLM", GROUPED | {"rope_parameters": rope}), tmp_path)
    with pytest.raises(ConfigError, match="dynamic is not supported"):
        read_spec(path)


def test_missing_weights_are_named(gemma: Path):
    edit_config(gemma, num_hidden_layers=4, layer_types=["full_attention"] * 4)
    with pytest.raises(ConfigError, match=r"missing keys: model\.layers\.3\."):
        load_model(gemma, device=CPU)


def test_a_loaded_model_does_not_follow_its_files(gemma: Path):
    model, tokens = load_model(gemma, device=CPU), random_tokens(20, 101, seed=1)
    before = PagedDriver(model).run(tokens, [20])
    file = gemma / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert torch.equal(PagedDriver(model).run(tokens, [20]), before)


def test_dummy_weights_follow_the_seed(gemma: Path):
    (gemma / "model.safetensors").unlink()
    tokens = random_tokens(20, 101, seed=1)

    def logits(seed: int) -> torch.Tensor:
        model = load_model(gemma, load_format="dummy", seed=seed, device=CPU)
        return PagedDriver(model).run(tokens, [20])

    assert torch.equal(logits(7), logits(7))
    assert not torch.equal(logits(7), logits(8))


@pytest.mark.parametrize(
    "unknown", [{"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(2)}, {"dropout": 0.1}]
)
def test_unknown_attention_arguments_raise(gemma: Path, unknown: dict[str, Any]):
    """An argument that is ignored would be a wrong answer nobody sees."""
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    x = torch.zeros(1, 2, 1, 16)
    cache = torch.zeros(1, 1, 2, 2, 4, 16)
    inputs: Any = None
    with pytest.raises(UnknownAttention), running(inputs, cache):
        attend(module, x, x, x, None, **unknown)


def test_our_kernels_package_is_not_taken_for_hugging_faces():
    """transformers looks for a package called kernels; ours has that name and is not it."""
    assert not is_kernels_available()
    program = (
        "import kernels.linear, transformers, transformers.models.gemma2.modeling_gemma2\n"
        "assert not hasattr(kernels, '__version__'), 'transformers would read it'\n"
        "from transformers.utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "Qwen3MoeForCausalLM"])
def test_int8_weights_of_other_families(architecture: str, tmp_path: Path):
    """The oracle gets rounded weights: linears, experts and head; routers and embeddings stay."""
    oracle = make_model(architecture, CASES[architecture])
    model = load_model(save(oracle, tmp_path), quantization="int8", device=CPU)
    tokens = random_tokens(40, 101, seed=7)
    logits = PagedDriver(model).run(tokens, [33, 7])
    plain = oracle_logits(oracle, tokens)

    def rounded(weight: torch.Tensor, axis: int) -> torch.nn.Parameter:
        scale = weight.abs().amax(axis, keepdim=True) / 127
        return torch.nn.Parameter((weight / scale).round() * scale)

    for module in oracle.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            module.weight = rounded(module.weight.data, 1 - isinstance(module, Conv1D))
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() == 3:
                setattr(module, name, rounded(weight.data, 2))
    torch.testing.assert_close(logits, oracle_logits(oracle, tokens), atol=1e-4, rtol=0)
    assert (logits - plain).abs().max() > 1e-4
