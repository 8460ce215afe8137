"""A server for embeddings, alone and behind a proxy: the guide's task, and who refuses what."""

import asyncio

import numpy as np
import openai
import pytest

from tests.e2e.cluster import cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = "xpyd-demo"
TEXTS = ["The capital of France is Paris.", "Who wrote Hamlet?"]


def test_the_embedding_task_of_the_guide(tmp_path):
    async def body():
        async with cluster(tmp_path, both=1, arguments=("--task", "embed")) as made:
            urls = [made.url, made.instances[0].plan.url]
            first, second = [await embed(url) for url in urls]
            np.testing.assert_array_equal(first, second)  # by the proxy and without it
            np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)
            assert abs(float(first[0] @ first[1])) < 0.999
            for url in urls:
                await rank_and_refuse(made, url)
            await made.at_rest()

    asyncio.run(body())


async def embed(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        response = await client.embeddings.create(model=MODEL, input=TEXTS)
        assert len(response.data[0].embedding[:5]) == 5
        assert [row.index for row in response.data] == [0, 1]
        with pytest.raises(openai.BadRequestError, match="not text"):
            await client.completions.create(model=MODEL, prompt="Hi")
        return np.array([row.embedding for row in response.data])


async def rank_and_refuse(made, url):
    async def post(path, **fields):
        async with made.session.post(f"{url}{path}", json=fields) as answer:
            return answer.status, await answer.json()

    status, ranked = await post("/v1/rerank", query=TEXTS[0], documents=TEXTS)
    assert status == 200 and [row["index"] for row in ranked["results"]] == [0, 1]
    assert ranked["results"][0]["relevance_score"] == pytest.approx(1.0, abs=1e-5)
    status, scored = await post("/score", text_1=TEXTS[0], text_2=TEXTS)
    scores = [row["score"] for row in scored["data"]]
    assert scores == [row["relevance_score"] for row in ranked["results"]]
    status, refused = await post("/classify", input="x")
    assert status == 400 and refused["error"]["param"] == "model"
    status, refused = await post("/v1/embeddings", input=["x " * 5000])
    assert status == 400 and refused["error"]["code"] == "context_length_exceeded"
