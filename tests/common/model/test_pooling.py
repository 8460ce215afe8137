"""Vectors of models that do not generate, through the real engine. Oracle: transformers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from common.engine.engine import Engine, EngineSettings
from common.engine.kv_cache import KVCache, KVLayout
from common.engine.pooler import Pooler
from common.errors import BadRequest, ConfigError
from common.model.loader import load_model
from common.model.spec import Pooling
from common.model.spec_reader import read_spec
from common.request import EngineRequest, FinishReason, SamplingParams
from tests.common.model.oracle import make_model, random_tokens, save
from tests.common.model.test_llama import SMALL

CPU = torch.device("cpu")
POOLINGS = {"last": "lasttoken", "mean": "mean_tokens", "cls": "cls_token"}


def engine_of(path, *, budget=16, num_blocks=64, runner="auto", method=None):
    model = load_model(path, device=CPU, runner=runner)
    assert model.spec.pooling is not None
    cache = KVCache(KVLayout.of(model.spec, 4), num_blocks, CPU)
    settings = EngineSettings(max_model_len=200, max_num_seqs=8, max_num_batched_tokens=budget)
    pooler = Pooler(method or model.spec.pooling.method)
    return Engine(model, cache, settings, (2,), "pooling", pooler=pooler)


def ask(name, tokens, **more):
    return EngineRequest(name, tuple(tokens), SamplingParams(0), is_pooled=True, **more)


def run(engine, prompts):
    """A vector for each prompt."""
    for name, tokens in prompts.items():
        engine.add(ask(name, tokens))
    events = {}
    while engine.has_work():
        result = engine.step()
        assert not result.failed
        for event in result.events:
            assert event.request_id not in events, "exactly one event"
            events[event.request_id] = event
    counts = engine.block_counts()
    assert counts["free"] + counts["cached"] == engine.ledger()["total"]
    for event in events.values():
        assert event.finish_reason is FinishReason.STOP and event.token_ids == ()
    return {n: np.frombuffer(events[n].vector, "<f4") for n in prompts}, events


def write_modules(path, method, *others):
    kinds = ["Transformer", "Pooling", *others]
    directories = ["", "1_Pooling", *(f"{n}_{each}" for n, each in enumerate(others, 2))]
    modules = [
        {"idx": n, "path": directory, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, directory) in enumerate(zip(kinds, directories, strict=True))
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir(exist_ok=True)
    config = {f"pooling_mode_{name}": name == method for name in POOLINGS.values()}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))


PROMPTS = {str(n): random_tokens(length, 101, seed=n) for n, length in enumerate((1, 5, 37, 90))}


def hidden_states(model, tokens):
    """[tokens, hidden] after the last norm."""
    return model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0].float().numpy()


@pytest.mark.parametrize("architecture", ["LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"])
def test_embeddings_are_those_of_transformers(architecture, tmp_path):
    model = make_model(architecture, SMALL)
    path = save(model, tmp_path)
    expected = {name: hidden_states(model, tokens) for name, tokens in PROMPTS.items()}
    reduce = {"last": lambda h: h[-1], "mean": lambda h: h.mean(axis=0), "cls": lambda h: h[0]}
    for method, take in reduce.items():
        write_modules(path, POOLINGS[method], "Normalize")
        spec = read_spec(path)
        assert spec.pooling is not None and spec.pooling.is_normalized
        assert (spec.architecture, spec.pooling.method) == (architecture, method)
        found, _ = run(engine_of(path), PROMPTS)
        for name, hidden in expected.items():
            np.testing.assert_allclose(found[name], take(hidden), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "architecture", ["LlamaForSequenceClassification", "Qwen3ForSequenceClassification"]
)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_classes_are_those_of_transformers(architecture, num_labels, tmp_path):
    model = make_model(architecture, {**SMALL, "num_labels": num_labels, "pad_token_id": 0})
    path = save(model, tmp_path)
    found, _ = run(engine_of(path), PROMPTS)
    for name, tokens in PROMPTS.items():
        scores = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
        np.testing.assert_allclose(found[name], scores, rtol=2e-4, atol=2e-4)
    spec = read_spec(path)
    assert spec.pooling is not None and len(spec.pooling.labels) == num_labels


def test_a_generating_model_can_be_asked_for_embeddings(tmp_path):
    """Its head is left in the file; tensors may be stored with the body's prefix or without."""
    model = make_model("Qwen3ForCausalLM", SMALL)
    path = save(model, tmp_path / "whole")
    found, _ = run(engine_of(path, runner="pooling"), PROMPTS)
    body = save(model.model, tmp_path / "body")
    config = json.loads((body / "config.json").read_text())
    assert config["architectures"] == ["Qwen3Model"]
    for name, vector in run(engine_of(body), PROMPTS)[0].items():
        np.testing.assert_array_equal(vector, found[name])
        np.testing.assert_allclose(
            vector, hidden_states(model.model, PROMPTS[name])[-1], rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("method", POOLINGS)
def test_vectors_do_not_depend_on_company_chunks_or_the_prefix_cache(method, tmp_path):
    path = save(make_model("Qwen3Model", SMALL), tmp_path)
    alone: dict[str, Any] = {}
    for name, tokens in PROMPTS.items():
        alone |= run(engine_of(path, budget=200, method=method), {name: tokens})[0]
    engine = engine_of(path, budget=8, method=method)
    for _ in range(2):
        found, events = run(engine, PROMPTS)
        for name, vector in alone.items():  # a sum's order depends on the chunks
            np.testing.assert_allclose(found[name], vector, rtol=1e-5, atol=1e-5)
    assert (events["3"].num_cached_tokens > 0) == (method == "last")


def test_too_few_blocks_and_aborts(tmp_path):
    path = save(make_model("LlamaModel", SMALL), tmp_path)
    engine = engine_of(path, budget=8, num_blocks=26, method="mean")
    expected, _ = run(engine_of(path, budget=200, method="mean"), PROMPTS)
    engine.add(ask("gone", PROMPTS["3"]))
    engine.step()
    engine.abort("gone")
    found, _ = run(engine, PROMPTS)
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], vector, rtol=1e-5, atol=1e-5)
    assert not engine._pooler._sums


def test_an_engine_does_one_or_the_other(tmp_path):
    engine = engine_of(save(make_model("LlamaModel", SMALL), tmp_path))
    with pytest.raises(BadRequest, match="not text"):
        engine.add(EngineRequest("a", (1, 2), SamplingParams(4)))


@pytest.mark.parametrize(
    ("architecture", "runner", "told"),
    [
        ("BertModel", "auto", "BertModel is not supported"),
        ("BertModel", "pooling", "BertModel cannot give embeddings"),
        ("LlamaModel", "generate", "no language head"),
    ],
)
def test_what_cannot_be_is_refused(architecture, runner, told, tmp_path):
    config = {"architectures": [architecture], **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=told):
        read_spec(tmp_path, runner=runner)


def test_other_modules_and_modes_are_refused(tmp_path):
    config = {"architectures": ["LlamaModel"], **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_modules(tmp_path, "lasttoken", "Dense")
    with pytest.raises(ConfigError, match="Dense"):
        read_spec(tmp_path)
    write_modules(tmp_path, "none of them")
    with pytest.raises(ConfigError, match="pooling_mode"):
        read_spec(tmp_path)
    write_modules(tmp_path, "lasttoken")
    assert read_spec(tmp_path).pooling == Pooling("last", is_normalized=False)
