from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from common.model.loader import LoadFormat, load_model, model_fingerprint, resolve_model
from common.model.spec_reader import read_spec
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
    return save(make_model("LlamaForCausalLM", TINY), tmp_path / "model")


def test_a_directory_is_itself(model_dir: Path):
    assert resolve_model(str(model_dir)) == model_dir


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "~/no/such", "a/b/c"])
def test_a_path_that_does_not_exist(name: str):
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_model(name)


def test_a_directory_without_a_model(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


def test_a_name_that_cannot_be_downloaded(tmp_path: Path):
    """In a process of its own: huggingface_hub reads the environment once."""
    program = (
        "from common.errors import ConfigError\n"
        "from common.model.loader import resolve_model\n"
        "try:\n"
        "    resolve_model('some-org/some-model')\n"
        "except ConfigError as error:\n"
        "    print(error.message)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.startswith("some-org/some-model is neither a directory nor a model that")
    assert found.stdout.count("\n") == 1, found.stdout + found.stderr


def test_a_cached_name_is_found_offline(model_dir: Path, tmp_path: Path):
    """The layout of huggingface_hub's cache, filled by hand."""
    revision = "0" * 40
    repository = tmp_path / "hub" / "models--some-org--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    model_dir.rename(repository / "snapshots" / revision)
    program = (
        "from common.model.loader import resolve_model\n"
        "print(resolve_model('some-org/some-model').name)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.strip() == revision, found.stderr


def test_an_unknown_dtype(model_dir: Path):
    with pytest.raises(ConfigError, match="dtype must be auto or one of bfloat16"):
        load_model(model_dir, dtype="int8", device=CPU)


def test_dummy_weights_need_no_weight_files_and_follow_the_seed(model_dir: Path):
    (model_dir / "model.safetensors").unlink()
    tokens = random_tokens(20, 32, seed=0)

    def logits(seed: int) -> torch.Tensor:
        model = load_model(model_dir, load_format="dummy", seed=seed, device=CPU)
        return PagedDriver(model).run(tokens, [20])

    assert torch.equal(logits(3), logits(3))
    assert not torch.equal(logits(3), logits(4))


def fingerprint(path: Path, dtype: str = "auto", how: LoadFormat = "auto", seed: int = 0) -> str:
    return model_fingerprint(path, read_spec(path), dtype, how, seed)


def test_fingerprints_are_equal_for_equal_weights(model_dir: Path, tmp_path: Path):
    copy = save(make_model("LlamaForCausalLM", TINY), tmp_path / "copy")
    assert fingerprint(model_dir) == fingerprint(copy)
    assert fingerprint(model_dir) == fingerprint(model_dir, dtype="float32")
    assert fingerprint(model_dir, how="dummy") == fingerprint(copy, how="dummy")
    spec = read_spec(model_dir)
    shorter = dataclasses.replace(spec, max_model_len=10, eos_token_ids=(7,))
    assert model_fingerprint(model_dir, shorter, "auto", "auto", 0) == fingerprint(model_dir)


def test_fingerprints_differ_for_unlike_weights(model_dir: Path, tmp_path: Path):
    other_weights = save(make_model("LlamaForCausalLM", TINY, seed=1), tmp_path / "a")
    other_base = TINY | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    other_rope = save(make_model("LlamaForCausalLM", other_base), tmp_path / "b")
    found = {
        fingerprint(model_dir),
        fingerprint(other_weights),
        fingerprint(other_rope),
        fingerprint(model_dir, dtype="bfloat16"),
        fingerprint(model_dir, how="dummy"),
        fingerprint(model_dir, how="dummy", seed=1),
    }
    assert len(found) == 6
