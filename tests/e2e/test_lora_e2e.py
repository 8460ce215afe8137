"""LoRA adapters over real processes: 1P1D against one instance and against merged weights."""

import asyncio
import copy
import json
import random
from contextlib import aclosing

import openai
import pytest
import torch
import transformers

from tests.common.model.lora_files import make_adapter, merge
from tests.common.model.oracle import oracle_greedy
from tests.e2e.cluster import DEMO_MODEL, cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ADMIN = {"x-api-key": "the administrator"}
MODELS = ("xpyd-demo", "a", "b")
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """(root of a, b and c; the model that each makes, in transformers)"""
    root = tmp_path_factory.mktemp("adapters")
    plain = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    plain = plain.eval().requires_grad_(False)
    make_adapter(root / "a", plain, seed=1, rank=8, alpha=16, size=1.0)
    make_adapter(root / "b", plain, seed=2, modules=("q_proj", "v_proj"), size=1.5)
    make_adapter(root / "c", plain, seed=3, rank=2, modules=("up_proj", "down_proj"), size=1.5)
    merged = {name: merge(copy.deepcopy(plain), root / name) for name in "abc"}
    return root, {"xpyd-demo": plain, **merged}


def flags(root):
    return (
        *("--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory", "32MiB"),
        *("--enable-lora", "--lora-root", str(root), "--lora-modules", f"a={root / 'a'}"),
        f'{{"name": "b", "path": "{root / "b"}", "base_model_name": "org/base"}}',
    )


def prompts():
    """Some share their first two blocks: with each model, and between models."""
    draw = random.Random(5)
    shared = [draw.randrange(4, 3000) for _ in range(70)]
    own = [[draw.randrange(4, 3000) for _ in range(length)] for length in (3, 40, 130)]
    return [*own, shared + own[0], shared + own[1][:5], shared]


async def ask(made, url, model, tokens, **sampling):
    sampling = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, **sampling}
    body = {"model": model, "token_ids": tokens, "sampling_params": sampling}
    async with made.session.post(f"{url}/inference/v1/generate", json=body) as answer:
        assert answer.status == 200, await answer.text()
        found = await answer.json()
        assert found["model"] == model
        return found["choices"][0]["token_ids"]


async def streamed(made, model, tokens, **sampling):
    body = {"model": model, "token_ids": tokens, "sampling_params": sampling, "stream": True}
    async with made.session.post(f"{made.url}/inference/v1/generate", json=body) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    for token in choice["token_ids"]:
                        yield token


async def change(made, url, action, body, headers=ADMIN):
    async with made.session.post(
        f"{url}/v1/{action}_lora_adapter", json=body, headers=headers
    ) as answer:
        return answer.status, await answer.text()


async def ask_all(made, url):
    """Every prompt with every model, all at once."""
    work = [(model, tokens) for tokens in prompts() for model in MODELS]
    return work, await asyncio.gather(*(ask(made, url, *each) for each in work))


def test_tokens_apart_are_those_of_one_instance_and_of_merged_weights(
    adapters, tmp_path, monkeypatch
):
    root, oracles = adapters
    monkeypatch.setenv("ADMIN_API_KEY", ADMIN["x-api-key"])

    async def body():
        async with cluster(tmp_path, prefill=1, decode=1, arguments=flags(root)) as made:
            decode = made.of("decode")[0].plan.url
            work, apart = await ask_all(made, made.url)
            for (model, tokens), found in zip(work, apart, strict=True):
                assert oracle_greedy(oracles[model], tokens, found) == found, model
            for first in range(0, len(work), len(MODELS)):  # the adapters matter
                assert len({tuple(each) for each in apart[first : first + len(MODELS)]}) > 1
            _, whole = await ask_all(made, decode)
            assert whole == apart
            counted = await made.metrics(made.of("decode")[0])
            assert counted["kv_loads_total"] >= len(work) // 2
            assert counted["recomputes_total"] == 0
            seeded = {"temperature": 0.9, "seed": 7}
            assert await ask(made, made.url, "a", work[3][1], **seeded) == await ask(
                made, decode, "a", work[3][1], **seeded
            )
            await asyncio.to_thread(with_the_sdk, made.url, root)
            await loading(made, root, oracles)
            await made.at_rest()

    asyncio.run(body())


def with_the_sdk(url, root):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        listed = {model.id: model.model_dump() for model in client.models.list()}
        assert set(listed) == set(MODELS)
        assert (listed["a"]["parent"], listed["a"]["root"]) == ("xpyd-demo", str(root / "a"))
        assert listed["b"]["parent"] == "org/base"
        assert listed["xpyd-demo"]["parent"] is None
        assert client.models.retrieve("a").id == "a"
        texts = set()
        for model in MODELS:
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=12,
            )
            assert answer.model == model
            texts.add(answer.choices[0].message.content)
        assert len(texts) == len(MODELS)
        with pytest.raises(openai.NotFoundError) as caught:
            client.completions.create(model="c", prompt="x")
        assert caught.value.code == "model_not_found"


async def until_listed(made, name):
    """What an instance was told on its own port, the proxy hears of a moment later."""
    for _ in range(600):
        if name in {model["id"] for model in (await made.get(f"{made.url}/v1/models"))["data"]}:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(made.logs())


async def loading(made, root, oracles):
    """Over the proxy, for both instances; by an administrator only."""
    (prefill,), (decode,) = made.of("prefill"), made.of("decode")
    wish = {"lora_name": "c", "lora_path": "c"}
    assert (await change(made, made.url, "load", wish, headers={}))[0] == 401
    for path in ("../a", "/proc/self/environ", "c/adapter_model.bin", "org/name", "https://x/y"):
        status, text = await change(made, made.url, "load", {**wish, "lora_path": path})
        assert status in (400, 403), text
        assert "environ" not in text
    status, text = await change(made, made.url, "load", wish)
    assert (status, text) == (200, "Success: LoRA adapter 'c' added successfully.")
    tokens = prompts()[1]
    found = await ask(made, made.url, "c", tokens)
    assert oracle_greedy(oracles["c"], tokens, found) == found
    status, text = await change(made, made.url, "load", wish)
    assert status == 400
    assert "unload it first" in text
    # What runs when its name goes, finishes.
    long = {"max_tokens": 300, "temperature": 0, "ignore_eos": True}
    expected = await ask(made, decode.plan.url, "c", tokens, **long)
    async with aclosing(streamed(made, "c", tokens, **long)) as stream:
        found = [await anext(stream)]
        assert (await change(made, made.url, "unload", {"lora_name": "c"}))[0] == 200
        names = {model["id"] for model in (await made.get(f"{made.url}/v1/models"))["data"]}
        assert names == set(MODELS)
        assert found + [token async for token in stream] == expected
    assert (await change(made, made.url, "unload", {"lora_name": "c"}))[0] == 404
    # One of two has it: the other is asked, and what went wrong there is told.
    assert (await change(made, prefill.plan.url, "load", wish))[0] == 200
    await until_listed(made, "c")
    status, text = await change(made, made.url, "load", {**wish, "lora_path": "nowhere"})
    assert status == 400, text
    found = await ask(made, made.url, "c", tokens)  # whole, where it is
    assert oracle_greedy(oracles["c"], tokens, found) == found
    assert (await change(made, made.url, "load", wish))[0] == 200
    assert await ask(made, made.url, "c", tokens) == found


@pytest.mark.long
@pytest.mark.parametrize("connector", ["shm", "shared_storage"])
def test_different_files_under_one_name_never_mix(connector, adapters, tmp_path):
    """P and D: the answer is that of one of the files. Then D alone, which has the other."""
    root, oracles = adapters
    common = ("--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory", "32MiB")

    async def body():
        options = {"connector": connector, "arguments": (*common, "--enable-lora")}
        async with cluster(tmp_path, proxy=False, **options) as made:
            made.start_proxy("--policy", "prefix_aware")
            made.start_instance("prefill", "--lora-modules", f"a={root / 'a'}")
            made.start_instance("decode", "--lora-modules", f"a={root / 'b'}", f"c={root / 'c'}")
            await made.healthy()
            await made.ready_instances(2)
            chosen = set()
            for tokens in prompts():
                found = await ask(made, made.url, "a", tokens)
                chosen |= {n for n in "ab" if oracle_greedy(oracles[n], tokens, found) == found}
                for model in ("c", "xpyd-demo"):
                    found = await ask(made, made.url, model, tokens)
                    assert oracle_greedy(oracles[model], tokens, found) == found
            assert len(chosen) == 1
            await made.at_rest()

    asyncio.run(body())


@pytest.mark.long
def test_a_request_keeps_its_adapter_when_its_instance_dies(adapters, tmp_path):
    root, _ = adapters

    async def body():
        async with cluster(tmp_path, prefill=1, decode=2, arguments=flags(root)) as made:
            tokens, long = prompts()[1], {"max_tokens": 300, "temperature": 0, "ignore_eos": True}
            expected = await ask(made, made.of("decode")[0].plan.url, "a", tokens, **long)
            assert await ask(made, made.of("decode")[0].plan.url, "b", tokens, **long) != expected
            async with aclosing(streamed(made, "a", tokens, **long)) as stream:
                found = [await anext(stream) for _ in range(20)]
                rows = (await made.get(f"{made.url}/instances"))["instances"]
                (busy,) = [r["url"] for r in rows if r["role"] == "decode" and r["requests"]]
                (victim,) = [c for c in made.of("decode") if c.plan.url == busy]
                victim.process.kill()
                assert found + [token async for token in stream] == expected

    asyncio.run(body())
