"""Reading weights from files, refusing files that do not fit, and making weights up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import ConfigError
from common.model.checkpoint import INDEX, Checkpoint, DummyWeights
from common.model.loader import load_model
from tests.common.model.oracle import make_model, random_tokens, save
from tests.common.model.paged_driver import PagedDriver

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return save(make_model("LlamaForCausalLM", TINY), tmp_path)


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) drop tensors; `__` in a keyword stands for a dot."""
    tensors = load_file(path / "model.safetensors")
    for keyword, tensor in changes.items():
        name = keyword.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors")


def test_shards_give_the_same_model_as_one_file(model_dir: Path, tmp_path: Path):
    oracle = make_model("LlamaForCausalLM", TINY)
    sharded = save(oracle, tmp_path / "sharded", shard_size="4KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    tokens = random_tokens(20, 32, seed=0)
    one, many = (
        PagedDriver(load_model(path, device=CPU)).run(tokens, [20]) for path in (model_dir, sharded)
    )
    assert torch.equal(one, many)


def test_ignorable_tensors_of_old_checkpoints(model_dir: Path):
    rewrite(model_dir, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    load_model(model_dir, device=CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, r"has no tensor model\.norm\.weight"),
        (
            {"model__layers__1__mlp__up_proj__weight": torch.ones(24, 15)},
            r"up_proj\.weight has shape \(24, 15\), config\.json asks for \(24, 16\)",
        ),
        (
            {"model__norm__weight": torch.ones(16, dtype=torch.int8)},
            r"model\.norm\.weight has dtype I8",
        ),
        (
            {"model__layers__0__self_attn__q_proj__bias": torch.ones(16)},
            r"does not use: model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            {f"extra{i}": torch.ones(1) for i in range(5)},
            "does not use: extra0, extra1, extra2 and 2 more",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(model_dir: Path, changes, message: str):
    rewrite(model_dir, **changes)
    with pytest.raises(ConfigError, match=message):
        load_model(model_dir, device=CPU)


def test_a_truncated_file(model_dir: Path):
    file = model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        load_model(model_dir, device=CPU)


def test_no_safetensors(model_dir: Path):
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load_model(model_dir, device=CPU)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../model.safetensors"}, "not beside it"),
        ({"a": 3}, "not beside it"),
        ({"a": "gone.safetensors"}, r"gone\.safetensors, named by .*, is missing"),
        ({"a": "model.safetensors"}, r"model\.safetensors has no tensor a"),
    ],
)
def test_an_index_that_does_not_fit(model_dir: Path, weight_map, message: str):
    (model_dir / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=message):
        load_model(model_dir, device=CPU)


def test_copies_convert_and_do_not_follow_the_file(model_dir: Path):
    stored = load_file(model_dir / "model.safetensors")["model.norm.weight"].clone()
    target = torch.empty(16, dtype=torch.bfloat16)
    with Checkpoint(model_dir) as weights:
        weights.copy_into(target, "model.norm.weight")
    (model_dir / "model.safetensors").write_bytes(b"")
    assert torch.equal(target, stored.bfloat16())


def filled(name: str, *shape: int, seed: int = 0) -> torch.Tensor:
    target = torch.empty(shape)
    DummyWeights(seed, 0.02).copy_into(target, name)
    return target


def test_dummy_weights_look_like_an_initialisation():
    matrix = filled("a.weight", 300, 400)
    assert abs(matrix.mean()) < 2e-4
    assert matrix.std().item() == pytest.approx(0.02, rel=0.02)
    assert filled("norm.weight", 5).tolist() == [1.0] * 5
    assert filled("q.bias", 5).tolist() == [0.0] * 5


def test_dummy_weights_depend_on_seed_and_name_only():
    assert torch.equal(filled("a", 30, 40), filled("a", 30, 40))
    assert not torch.equal(filled("a", 30, 40), filled("b", 30, 40))
    assert not torch.equal(filled("a", 30, 40), filled("a", 30, 40, seed=1))
    # Two instances on unlike machines must agree: the generator may never change.
    expected = torch.tensor(
        [-0.049250487238168716, -0.020860392600297928, 0.018437305465340614, 0.029594136402010918]
    )
    assert torch.equal(filled("model.embed_tokens.weight", 1, 4)[0], expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted on Linux")
def test_pages_of_the_file_do_not_stay_in_memory(tmp_path: Path):
    """Of a checkpoint no more than the tensor at hand counts as this process's memory."""

    def mapped_mib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) // 1024

    tensors = {f"t{i}": torch.full((8 << 20,), float(i)) for i in range(6)}  # 32 MiB each
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    target = torch.empty(8 << 20)
    before = mapped_mib()
    with Checkpoint(tmp_path) as weights:
        for i in range(6):
            weights.copy_into(target, f"t{i}")
            assert torch.equal(target, torch.full_like(target, i))
            assert mapped_mib() - before < 40
