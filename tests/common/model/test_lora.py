"""Adapters against the same weights merged in plain torch and run by transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from common.model.loader import load_model
from common.model.lora.adapter import AdapterRows, project
from common.model.lora.load import load_adapter
from kernels.linear import pack
from tests.common.model.lora_files import make_adapter, merge
from tests.common.model.oracle import (
    make_model,
    oracle_greedy,
    oracle_logits,
    random_tokens,
    save,
)
from tests.common.model.paged_driver import PagedDriver

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 16},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"rank": 4, "alpha": 8.0},
    "attention": {"rank": 8, "alpha": 4.0, "modules": ("q_proj", "v_proj")},
    "feed_forward": {"rank": 1, "alpha": 2.0, "modules": ("up_proj", "down_proj")},
    "stabilized": {"rank": 16, "alpha": 8.0, "use_rslora": True, "size": 0.2},
    "odd": {"rank": 3, "alpha": 7.5, "modules": ("k_proj", "o_proj", "gate_proj")},
}


class Made:
    """One architecture: the oracle, ours, and every adapter in both forms."""

    def __init__(self, architecture, path):
        self.oracle = make_model(architecture, SHAPE | ARCHITECTURES[architecture])
        self.path = save(self.oracle, path / "model")
        self.model = load_model(self.path, dtype="float32", device=CPU)
        self.paths = {
            name: make_adapter(path / name, self.oracle, seed=seed, **options)
            for seed, (name, options) in enumerate(ADAPTERS.items())
        }
        self.adapters = {name: self.load(name) for name in ADAPTERS}

    def load(self, name, model=None):
        spec = (model or self.model).spec
        return load_adapter(self.paths[name], spec, max_rank=16, device=CPU)

    def merged(self, name):
        return merge(copy.deepcopy(self.oracle), self.paths[name])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request, tmp_path_factory):
    return Made(request.param, tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_those_of_merged_weights(made, name):
    tokens = random_tokens(40, 131, seed=3)
    expected = oracle_logits(made.merged(name), tokens)
    found = PagedDriver(made.model).run(tokens, [17, 1, 22], made.adapters[name])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    plain = oracle_logits(made.oracle, tokens)
    assert (expected - plain).abs().max() > 0.1  # the adapter matters


def test_greedy_tokens_are_those_of_merged_weights(made):
    prompt = random_tokens(11, 131, seed=4)
    found = PagedDriver(made.model).greedy(prompt, 24, made.adapters["all"])
    assert oracle_greedy(made.merged("all"), prompt, found) == found
    assert found != PagedDriver(made.model).greedy(prompt, 24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_who_shares_the_batch(made, dtype):
    """Bit for bit: alone, in chunks, among other adapters and among none."""
    model = load_model(made.path, dtype=dtype, device=CPU)
    adapters = [None, *(made.load(name, model) for name in ADAPTERS), None]
    prompts = [random_tokens(9 + 5 * i, 131, seed=20 + i) for i in range(len(adapters))]
    driver = PagedDriver(model)
    crowd = [driver.add(p, adapter=a) for p, a in zip(prompts, adapters, strict=True)]
    firsts = driver.step([(sequence, 6) for sequence in crowd])
    rests = driver.step([(s, len(s.tokens) - 6) for s in reversed(crowd)])[::-1]
    for prompt, adapter, first, rest in zip(prompts, adapters, firsts, rests, strict=True):
        alone = PagedDriver(model, seed=9).run(prompt, [len(prompt)], adapter)
        assert torch.equal(torch.cat([first, rest]), alone)


def test_rows_together_or_one_by_one_are_the_same(made):
    adapter = made.adapters["all"]
    x = torch.randn(13, 48, generator=torch.Generator().manual_seed(1))
    weight = pack(torch.randn(160, 48, generator=torch.Generator().manual_seed(2)))
    each = tuple(AdapterRows(adapter, slice(i, i + 1)) for i in range(13))
    whole = project(x, weight, (AdapterRows(adapter, slice(0, 13)),), 1, "gate_up")
    assert torch.equal(project(x, weight, each, 1, "gate_up"), whole)
    plain = project(x, weight, (), 1, "gate_up")
    some = project(x, weight, each[5:], 1, "gate_up")
    assert torch.equal(some, torch.cat([plain[:5], whole[5:]]))
    assert not torch.equal(plain[5:], whole[5:])


def test_digests_name_what_is_computed(made, tmp_path):
    same = make_adapter(tmp_path / "same", made.oracle, seed=0, **ADAPTERS["all"])
    other = make_adapter(tmp_path / "other", made.oracle, seed=99, **ADAPTERS["all"])
    scaled = make_adapter(tmp_path / "scaled", made.oracle, seed=0, rank=4, alpha=9.0)
    digests = [
        load_adapter(path, made.model.spec, max_rank=16, device=CPU).digest
        for path in (made.paths["all"], same, other, scaled)
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
