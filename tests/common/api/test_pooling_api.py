"""Embeddings, scores, ranks and classes over HTTP, by OpenAI's SDK and by hand."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import openai
import pytest

from common.api.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from common.api.scripted import Script, ScriptedEngine, made_up_vector
from common.request import PooledOutput
from tests.common.api.apps import MODEL, InProcess, app_of, error_of, says, served, text_model

WIDTH = 6
EMBEDS = PooledOutput(WIDTH, is_normalized=True, can_shorten=True)
PATHS: dict[str, dict[str, object]] = {
    "/v1/embeddings": {"input": "x"},
    "/pooling": {"input": "x"},
    "/classify": {"input": "x"},
    "/score": {"text_1": "x", "text_2": "y"},
    "/v1/score": {"queries": "x", "documents": ["y"]},
    "/rerank": {"query": "x", "documents": ["y"]},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
    "/v2/rerank": {"query": "x", "documents": ["y"]},
}


def pooling(pooled=EMBEDS, **options):
    return ScriptedEngine(Script(), model=MODEL, pooled=pooled, **options)


APP = InProcess(pooling())


def raw(text, num_values=WIDTH):
    vector = made_up_vector(text_model().encode(text), num_values)
    return np.frombuffer(vector, "<f4").astype(np.float64)


def unit(vector):
    return vector / np.linalg.norm(vector)


def softmax(scores):
    powers = np.exp(scores)
    return powers / powers.sum()


# --- embeddings ----------------------------------------------------------------------------------


def test_the_guides_task():
    """As vLLM's guide has it; the SDK asks for base64 by itself."""
    engine = pooling()
    with (
        served(app_of(engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        texts = ["Hello there.", "Something else"]
        response = client.embeddings.create(model=MODEL, input=texts)
        assert len(response.data[0].embedding[:5]) == 5
        as_lists = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    for n, text in enumerate(texts):
        np.testing.assert_allclose(response.data[n].embedding, unit(raw(text)), atol=1e-6)
        assert response.data[n].embedding == as_lists.data[n].embedding
        assert response.data[n].index == n
    tokens = sum(len(text_model().encode(text)) for text in texts)
    assert response.usage.prompt_tokens == response.usage.total_tokens == tokens
    request = engine.requests[0]
    assert request.is_pooled and request.sampling.max_tokens == 0


def test_token_ids_are_texts_too():
    ids = text_model().encode("Hello")
    for given, count in (("Hello", 1), (ids, 1), ([ids, ids[:1]], 2), (["Hello", "H"], 2)):
        data = APP.post("/v1/embeddings", {"input": given}).json()["data"]
        assert len(data) == count
        np.testing.assert_allclose(data[0]["embedding"], unit(raw("Hello")), atol=1e-6)


def test_base64_is_float32_little_endian():
    body = {"input": "Hello", "encoding_format": "base64"}
    for path, name in (("/v1/embeddings", "embedding"), ("/pooling", "data")):
        found = APP.post(path, body).json()["data"][0][name]
        vector = np.frombuffer(base64.b64decode(found), "<f4")
        np.testing.assert_allclose(vector, unit(raw("Hello")), atol=1e-6)


def test_dimensions():
    found = APP.post("/v1/embeddings", {"input": "Hello", "dimensions": 4}).json()["data"]
    np.testing.assert_allclose(found[0]["embedding"], unit(raw("Hello")[:4]), atol=1e-6)
    wrong = APP.post("/v1/embeddings", {"input": "Hello", "dimensions": WIDTH + 1})
    assert error_of(wrong, 400)["param"] == "dimensions"
    fixed = InProcess(pooling(PooledOutput(WIDTH, is_normalized=True)))
    assert fixed.post("/v1/embeddings", {"input": "x", "dimensions": WIDTH}).status_code == 200
    wrong = fixed.post("/v1/embeddings", {"input": "x", "dimensions": 2})
    assert error_of(wrong, 400)["param"] == "dimensions"


def test_vectors_of_any_length_are_left_so():
    app = InProcess(pooling(PooledOutput(WIDTH)))
    found = app.post("/v1/embeddings", {"input": "Hello"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(found, raw("Hello"), atol=1e-6)


def test_long_texts():
    app = InProcess(pooling(max_model_len=8))
    body = {"input": "one two three four five six seven eight nine"}
    error = error_of(app.post("/v1/embeddings", body), 400)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length" in error["message"]
    for keep in (-1, 3):
        answer = app.post("/v1/embeddings", {**body, "truncate_prompt_tokens": keep})
        assert answer.json()["usage"]["prompt_tokens"] == (7 if keep == -1 else keep)
    exact = text_model().encode(body["input"])[:8]
    assert app.post("/v1/embeddings", {"input": exact}).status_code == 200


# --- scores, ranks, classes ----------------------------------------------------------------------


def test_scores_of_an_embedding_model_are_cosines():
    expected = [float(unit(raw("a")) @ unit(raw(text))) for text in ("b", "c", "a")]
    for body in (
        {"text_1": "a", "text_2": ["b", "c", "a"]},
        {"queries": ["a", "a", "a"], "documents": ["b", "c", "a"]},
    ):
        for path in ("/score", "/v1/score"):
            data = APP.post(path, body).json()["data"]
            np.testing.assert_allclose([row["score"] for row in data], expected, atol=1e-6)
            assert [row["index"] for row in data] == [0, 1, 2]
    wrong = APP.post("/score", {"text_1": ["a", "b"], "text_2": ["b", "c", "a"]})
    assert error_of(wrong, 400)["param"] == "text_1"
    assert error_of(APP.post("/score", {"text_1": "a"}), 400)["param"] == "queries"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_best_comes_first(path):
    documents = ["b", "cc", "a", "ddd"]
    cosines = [float(unit(raw("a")) @ unit(raw(text))) for text in documents]
    order = sorted(range(4), key=lambda n: -cosines[n])
    body = {"query": "a", "documents": ["b", {"text": "cc"}, "a", "ddd"]}
    results = APP.post(path, body).json()["results"]
    assert [row["index"] for row in results] == order and order[0] == 2
    for row in results:
        assert row["relevance_score"] == pytest.approx(cosines[row["index"]], abs=1e-6)
        assert row["document"] == {"text": documents[row["index"]]}
    short = APP.post(path, {**body, "top_n": 2, "return_documents": False}).json()["results"]
    assert [row["index"] for row in short] == order[:2]
    assert all("document" not in row for row in short)


def test_a_classifier_with_one_label_reads_pairs():
    engine = pooling(PooledOutput(1, labels=("relevance",)))
    data = InProcess(engine).post("/score", {"text_1": "ab", "text_2": ["c", "d"]}).json()["data"]
    for row, second in zip(data, "cd", strict=True):
        tokens = text_model().encode_pair("ab", second)
        (logit,) = np.frombuffer(made_up_vector(tokens, 1), "<f4")
        assert row["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
        assert tokens in [list(request.prompt_token_ids) for request in engine.requests]


def test_classes():
    app = InProcess(pooling(PooledOutput(3, labels=("cat", "dog", "bird"))))
    data = app.post("/classify", {"input": ["Hello", "x"]}).json()["data"]
    for row, text in zip(data, ("Hello", "x"), strict=True):
        expected = softmax(raw(text, 3))
        np.testing.assert_allclose(row["probs"], expected, atol=1e-6)
        assert row["label"] == ("cat", "dog", "bird")[int(expected.argmax())]
        assert row["num_classes"] == 3
    pooled = app.post("/pooling", {"input": "x", "task": "classify"}).json()["data"][0]["data"]
    np.testing.assert_allclose(pooled, softmax(raw("x", 3)), atol=1e-6)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_generating_server_says_so(path):
    error = error_of(InProcess(says("Hi")).post(path, PATHS[path]), 400)
    assert "--runner pooling" in error["message"] and error["param"] == "model"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_pooling_server_does_not_generate(path):
    user = [{"role": "user", "content": "Hi"}]
    bodies = {
        "/v1/chat/completions": {"messages": user},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/responses": {"input": "Hi"},
    }
    error = error_of(APP.post(path, bodies[path]), 400)
    assert "not text" in error["message"]
    assert not APP.engine.running


def test_what_a_model_does_not_give_is_refused():
    classifier = InProcess(pooling(PooledOutput(3, labels=("a", "b", "c"))))
    for app, path, body in (
        (APP, "/classify", {"input": "x"}),
        (APP, "/pooling", {"input": "x", "task": "classify"}),
        (classifier, "/v1/embeddings", {"input": "x"}),
        (classifier, "/pooling", {"input": "x", "task": "embed"}),
        (classifier, "/score", {"text_1": "x", "text_2": "y"}),
        (classifier, "/rerank", {"query": "x", "documents": ["y"]}),
    ):
        assert error_of(app.post(path, body), 400)["param"] == "model"


@pytest.mark.parametrize("wrong", ["", [], [[]], [1, "a"], {"a": 1}, [-1], [99999999], None])
def test_wrong_inputs(wrong):
    error = error_of(APP.post("/v1/embeddings", {"input": wrong}), 400)
    assert error["param"] in ("input", "prompt")


def test_the_model_must_exist():
    for path, body in PATHS.items():
        answer = APP.post(path, {**body, "model": "nobody"})
        assert error_of(answer, 404)["code"] == "model_not_found"


def test_the_page_names_every_field_and_path():
    page = (Path(__file__).parents[3] / "docs" / "embeddings.md").read_text()
    told = set(re.findall(r"`([a-z_0-9]+)`", page))
    requests = (EmbeddingRequest, PoolingRequest, ClassifyRequest, ScoreRequest, RerankRequest)
    for request in requests:
        assert set(request.model_fields) <= told
    assert all(path in page for path in PATHS)
