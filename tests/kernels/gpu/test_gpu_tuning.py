"""Choosing kernel shapes with a clock moved by hand; and every shape computes the same."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from kernels.attention import paged_attention_torch
from tests.kernels.gpu.test_gpu_attention import batch


@dataclass(frozen=True)
class Shape:
    size: int


SHAPES = (Shape(1), Shape(2), Shape(3))


class Seconds:
    """Each launch tells how long it took."""

    def __init__(self, by_size):
        self.by_size = by_size
        self.launched = []

    def __call__(self, launch):
        size = launch()
        self.launched.append(size)
        if self.by_size[size] is None:
            raise RuntimeError("out of shared memory")
        return self.by_size[size]


@pytest.fixture(autouse=True)
def forgotten():
    from kernels.gpu.tuning import forget

    yield
    forget()


def tuned(path, seconds, case=(7,)):
    from kernels.gpu.tuning import Tuner, chosen, forget

    forget()
    tuner = Tuner(path, seconds)
    tuner.tune("kernel", case, SHAPES, lambda shape: shape.size)
    tuner.save()
    return chosen("kernel", case, Shape(0))


def test_the_fastest_shape_is_chosen_and_kept(tmp_path):
    path = tmp_path / "deep" / "gpu.json"
    assert tuned(path, Seconds({1: 3.0, 2: 1.0, 3: 2.0})) == Shape(2)
    later = Seconds({1: 1.0, 2: 9.0, 3: 9.0})
    assert tuned(path, later) == Shape(2)
    assert not later.launched, "known: nothing is measured"
    assert tuned(path, later, case=(8,)) == Shape(1)
    assert len(json.loads(path.read_text())) == 2


def test_what_does_not_run_is_passed_over(tmp_path):
    assert tuned(tmp_path / "a", Seconds({1: None, 2: 5.0, 3: None})) == Shape(2)
    assert tuned(tmp_path / "b", Seconds({1: None, 2: None, 3: None})) == Shape(0)


@pytest.mark.parametrize("text", ["{", "[1]", '{"kernel 7": [4]}', '{"kernel 7": "x"}', ""])
def test_a_damaged_file_is_measured_anew(tmp_path, text):
    path = tmp_path / "gpu.json"
    path.write_text(text)
    assert tuned(path, Seconds({1: 3.0, 2: 2.0, 3: 1.0})) == Shape(3)
    assert tuned(path, Seconds({})) == Shape(3)


def test_a_file_that_cannot_be_written_costs_no_start(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert tuned(tmp_path / "file" / "gpu.json", Seconds({1: 1.0, 2: 2.0, 3: 3.0})) == Shape(1)
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("queries", [1, 20])
def test_attention_is_the_same_in_every_tile(queries, tmp_path):
    from kernels.gpu.attention import tune_attention
    from kernels.gpu.tuning import Tuner

    *tensors, scale = batch([queries, queries], [150, 40], 4, 2, 32, 16, torch.float32)
    arguments: tuple[Any, ...] = (*tensors, scale, None, None)
    expected = paged_attention_torch(*arguments)
    found = []

    def keep(launch):
        out = launch()
        found.append(out.clone())
        out.fill_(float("nan"))
        return 1.0

    arguments = (Tuner(tmp_path / "f", keep), *tensors, None, queries, 150)
    tune_attention(*arguments)
    assert len(found) == 5
    for out in found:
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_a_model_is_tuned_for_its_own_batches(tmp_path):
    from common.model.llama import Llama
    from common.model.loader import load_model
    from common.model.tuning import tune_kernels
    from kernels.gpu.tuning import Tuner
    from tests.common.model.oracle import make_model, save

    settings = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
    }  # fmt: skip
    path = save(make_model("LlamaForCausalLM", settings), tmp_path)
    model = load_model(path, dtype="float32", device=torch.device("cpu"))
    assert isinstance(model, Llama)
    cache = torch.randn(5, 2, 2, 2, 8, 8)
    before = cache.clone()
    file = tmp_path / "tuned.json"
    tune_kernels(model, cache, 3, 20, Tuner(file, lambda launch: 1.0))
    kernels = [name.split()[0] for name in json.loads(file.read_text())]
    assert sorted(kernels) == ["decode", "decode", "decode", "prefill"]
    assert torch.equal(cache, before)
