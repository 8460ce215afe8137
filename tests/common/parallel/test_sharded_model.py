"""A model that ranks share against transformers' own forward and against the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from common.errors import ConfigError
from common.model.checkpoint import Checkpoint, DummyWeights
from common.model.loader import load_model
from common.model.shards import Part, Shard, check_shards, heads_of
from common.model.spec_reader import read_spec
from common.parallel.group import GroupRanks
from tests.common.model.oracle import make_model, oracle_logits, random_tokens, save
from tests.common.model.paged_driver import PagedDriver
from tests.common.parallel.in_threads import in_ranks

CPU = torch.device("cpu")
VOCAB = 101  # divided by neither 2 nor 4
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 82,  # nor this by 4
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,  # two copies of each at 4
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-heads-8": ("LlamaForCausalLM", {"num_key_value_heads": 8, "head_dim": 12}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3-tied": ("Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": True}),
}
PROMPT = random_tokens(40, VOCAB, seed=1)


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    architecture, settings = CASES[request.param]
    oracle = make_model(architecture, SMALL | settings)
    return oracle, save(oracle, tmp_path_factory.mktemp("model"))


class _Local:
    """Of a shared model, what makes its cache: the driver's random one has this rank's heads."""

    def __init__(self, path: Path, ranks: GroupRanks, dtype: str = "auto") -> None:
        self._model = load_model(path, device=CPU, ranks=ranks, dtype=dtype)
        self.spec = ranks.shard.local(self._model.spec)
        self.forward = self._model.forward


def shared(path: Path, num_ranks: int, work: Any, dtype: str = "auto") -> Any:
    """What `work(model)` returns on rank 0, having run on all."""
    return in_ranks(num_ranks, lambda ranks: work(_Local(path, ranks, dtype)))[0]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_shared_logits_are_those_of_transformers_and_tokens_those_of_one_rank(
    saved: tuple[Any, Path], num_ranks: int
):
    oracle, path = saved
    whole = load_model(path, device=CPU)

    def logits_and_tokens(model: Any) -> tuple[torch.Tensor, list[int]]:
        logits = PagedDriver(model).run(PROMPT, [1, 23, 15, 1])
        return logits, _continued(model, logits)

    def _continued(model: Any, logits: torch.Tensor) -> list[int]:
        """Every rank is told the token that rank 0 chose: here, that of the whole model."""
        driver = PagedDriver(model, seed=3)
        sequence = driver.add(PROMPT + greedy)
        (every,) = driver.step([(sequence, len(sequence.tokens))])
        return [int(row.argmax()) for row in every[len(PROMPT) - 1 :]]

    greedy = PagedDriver(whole).greedy(PROMPT, 24)
    logits, tokens = shared(path, num_ranks, logits_and_tokens)
    assert logits.shape == (len(PROMPT), VOCAB)
    torch.testing.assert_close(logits, oracle_logits(oracle, PROMPT), atol=1e-4, rtol=0)
    assert tokens[:-1] == greedy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shared_logits_do_not_depend_on_the_batch(tmp_path: Path, dtype: str):
    """Bit for bit: in one piece, in chunks, in other blocks beside another sequence."""
    path = save(make_model("Qwen3ForCausalLM", SMALL | {"head_dim": 16}), tmp_path)

    def three_ways(model: Any) -> list[torch.Tensor]:
        alone = PagedDriver(model).run(PROMPT, [40])
        chunked = PagedDriver(model, seed=1, block_size=8).run(PROMPT, [1, 30, 8, 1])
        driver = PagedDriver(model, seed=2)
        other, same = driver.add(random_tokens(50, VOCAB, seed=2)), driver.add(PROMPT)
        driver.step([(other, 20)])
        beside = torch.cat([driver.step([(other, 10), (same, n)])[1] for n in (30, 1, 9)])
        return [alone, chunked, beside]

    alone, chunked, beside = shared(path, 2, three_ways, dtype)
    assert torch.equal(alone, chunked)
    assert torch.equal(alone, beside)


def test_dummy_weights_are_the_same_however_they_are_shared(tmp_path: Path):
    save(make_model("LlamaForCausalLM", SMALL), tmp_path)

    def logits(ranks: GroupRanks | None) -> torch.Tensor:
        model: Any = load_model(tmp_path, device=CPU, load_format="dummy", seed=5, ranks=ranks)
        if ranks is not None:
            whole, model = model, _Local.__new__(_Local)
            model.spec, model.forward = ranks.shard.local(whole.spec), whole.forward
        return PagedDriver(model).run(PROMPT, [40])

    torch.testing.assert_close(in_ranks(2, logits)[0], logits(None), atol=1e-5, rtol=0)


def test_a_sum_adds_by_rank_and_is_the_same_everywhere():
    """1e8 swallows a 1 that comes after it, so another order gives another sum."""
    parts = [torch.tensor([1.0, 1e8]), torch.tensor([1e8, 1.0]), torch.tensor([-1e8, -1e8])]
    sums = in_ranks(3, lambda ranks: ranks.sum(parts[ranks.shard.rank].clone()))
    expected = (parts[0] + parts[1]) + parts[2]
    assert all(torch.equal(found, expected) for found in sums)


def test_columns_are_gathered_in_rank_order():
    gathered = in_ranks(3, lambda ranks: ranks.gather_columns(torch.full((2, 1), ranks.shard.rank)))
    assert gathered[0].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_a_part_is_read_from_the_file_and_compared_with_the_whole_shape(tmp_path: Path):
    path = save(make_model("LlamaForCausalLM", SMALL), tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    with safe_open(path / "model.safetensors", framework="pt") as file:
        whole = file.get_tensor(name)
    with Checkpoint(path) as weights:
        target = torch.empty(48, 21)
        weights.copy_into(target, name, Part((48, 82), 1, 20, 41))
        assert torch.equal(target, whole[:, 20:41])
        with pytest.raises(ConfigError, match=r"config\.json asks for \(48, 84\)"):
            weights.copy_into(target, name, Part((48, 84), 1, 20, 41))
    made_up = DummyWeights(1, 0.02)
    whole, target = torch.empty(10, 6), torch.empty(4, 6)
    made_up.copy_into(whole, name)
    made_up.copy_into(target, name, Part((10, 6), 0, 3, 7))
    assert torch.equal(target, whole[3:7])


@pytest.mark.parametrize("total", [1, 5, 82, 128])
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_shares_cover_everything_once(total: int, num_ranks: int):
    shards = [Shard(rank, num_ranks) for rank in range(num_ranks)]
    assert [item for shard in shards for item in shard.share(total)] == list(range(total))
    padded = [shard.padded_share(total) for shard in shards]
    assert [item for ours, _ in padded for item in ours] == list(range(total))
    assert all(len(ours) <= room == -(-total // num_ranks) for ours, room in padded)


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_a_rank_has_the_kv_heads_of_its_query_heads(num_ranks: int, kv_heads: int):
    for rank in range(num_ranks):
        queries = Shard(rank, num_ranks).share(16)
        keys = heads_of(rank, num_ranks, kv_heads)
        assert {query * kv_heads // 16 for query in queries} == set(keys)


@pytest.mark.parametrize(
    "settings, num_ranks, named",
    [
        ({}, 3, "attention heads"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 4}, 6, "KV heads"),
    ],
)
def test_a_model_that_cannot_be_shared_is_refused(tmp_path, settings, num_ranks, named):
    path = save(make_model("LlamaForCausalLM", SMALL | settings), tmp_path)
    with pytest.raises(ConfigError, match=f"--tensor-parallel-size {num_ranks}.*{named}"):
        check_shards(read_spec(path), num_ranks)
