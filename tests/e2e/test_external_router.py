"""A router that knows only vLLM's contract, driving real instances without our proxy.

Two HTTP calls: P runs the prompt and answers where its KV is, D takes the client's request with
that answer in it.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.e2e.cluster import cluster

pytestmark = pytest.mark.e2e
TO_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PATH = "/v1/completions"


class Router:
    """As small as the contract allows: opaque parameters, but for the host, which some rewrite."""

    def __init__(self, running):
        self.session = running.session
        self.prefill = running.of("prefill")[0].plan.url
        self.decode = running.of("decode")[0].plan.url

    async def post(self, url, path, body):
        async with self.session.post(f"{url}{path}", json=body) as answer:
            return answer.status, await answer.json()

    async def prefilled(self, body, path=PATH):
        """The parameters for D."""
        leg = {**body, "kv_transfer_params": TO_PREFILL, "stream": False, "max_tokens": 1}
        leg.pop("stream_options", None)
        if "max_completion_tokens" in leg:
            leg["max_completion_tokens"] = 1
        status, answer = await self.post(self.prefill, path, leg)
        assert status == 200, answer
        params = answer["kv_transfer_params"]
        assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
        for name in ("remote_engine_id", "remote_request_id", "remote_host", "remote_port"):
            assert params[name], name
        assert params["remote_block_ids"] and params["remote_block_ids"][0]
        return {**params, "remote_host": "127.0.0.1"}

    async def route(self, body, path=PATH):
        params = await self.prefilled(body, path)
        status, answer = await self.post(self.decode, path, {**body, "kv_transfer_params": params})
        assert status == 200, answer
        return answer

    async def co_located(self, body, path=PATH):
        """The same engine, the whole request on one instance."""
        status, answer = await self.post(self.decode, path, body)
        assert status == 200, answer
        return answer


def prompt_of(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(10, 3000) for _ in range(length)]


def bodies():
    """Lengths around a block's border (32), greedy and seeded, with what P's leg changes."""
    for number, length in enumerate((1, 2, 32, 33, 64, 200)):
        yield {"prompt": prompt_of(length, number), "max_tokens": 12, "temperature": 0}
        yield {
            "prompt": prompt_of(length, number + 100),
            "max_tokens": 12,
            "temperature": 1.0,
            "seed": 7,
            "min_tokens": 3,
            "logprobs": 2,
            "return_token_ids": True,
        }


async def check_answers(running, router):
    loads = (await running.metrics(running.of("decode")[0]))["kv_loads_total"]
    made = list(bodies())
    for body in made:
        routed = await router.route(body)
        assert "kv_transfer_params" not in routed
        whole = await router.co_located(body)
        assert routed["choices"] == whole["choices"]
        for name in ("prompt_tokens", "completion_tokens"):
            assert routed["usage"][name] == whole["usage"][name]
    metrics = await running.metrics(running.of("decode")[0])
    assert metrics["kv_loads_total"] - loads == len(made), "every prompt was handed over"
    assert metrics["recomputes_total"] == 0


async def check_chat(router):
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_completion_tokens": 10,
        "temperature": 0,
    }
    path = "/v1/chat/completions"
    routed, whole = await router.route(body, path), await router.co_located(body, path)
    assert routed["choices"] == whole["choices"]


async def check_what_the_kv_does_not_hold(router):
    """Log-probabilities of the prompt are computed by D, which then needs no KV."""
    body = {"prompt": prompt_of(40), "max_tokens": 4, "temperature": 0, "prompt_logprobs": 1}
    params = await router.prefilled({**body, "prompt_logprobs": None})
    _, routed = await router.post(router.decode, PATH, {**body, "kv_transfer_params": params})
    whole = await router.co_located(body)
    assert routed["choices"] == whole["choices"]


async def check_refusals(running, router):
    body = {"prompt": prompt_of(50), "max_tokens": 8, "temperature": 0}
    params = await router.prefilled(body)
    text = params["remote_request_id"]
    changed = text[:60] + ("A" if text[60] != "A" else "B") + text[61:]
    for wrong in (changed, text[:-4], "", "x" * 9000, None):
        forged = {**params, "remote_request_id": wrong}
        status, answer = await router.post(
            router.decode, PATH, {**body, "kv_transfer_params": forged}
        )
        assert status == 400, answer
        assert "was not made by an instance of this fleet" in answer["error"]["message"]
    other = {**body, "prompt": prompt_of(50, seed=9), "kv_transfer_params": params}
    status, answer = await router.post(router.decode, PATH, other)
    assert status == 400
    assert "another prompt" in answer["error"]["message"]
    for url, wrong_role in ((router.decode, TO_PREFILL), (router.prefill, params)):
        status, answer = await router.post(url, PATH, {**body, "kv_transfer_params": wrong_role})
        assert status == 400
        assert "instance" in answer["error"]["message"]


async def check_replay(running, router):
    """A second reader of the same KV finds nothing, and computes: the answer stays right."""
    body = {"prompt": prompt_of(70, seed=3), "max_tokens": 8, "temperature": 0}
    params = await router.prefilled(body)
    answers = [
        await router.post(router.decode, PATH, {**body, "kv_transfer_params": params})
        for _ in range(2)
    ]
    whole = await router.co_located(body)
    assert [status for status, _ in answers] == [200, 200]
    assert all(answer["choices"] == whole["choices"] for _, answer in answers)


def test_a_router_of_others_drives_two_instances(tmp_path):
    async def run():
        key = tmp_path / "key"
        key.write_text("a cluster key for this test only")
        key.chmod(0o600)
        flags = ("--allow-external-router", "--cluster-key-file", str(key), "--kv-lease-s", "3")
        async with cluster(tmp_path, prefill=1, decode=1, proxy=False, arguments=flags) as running:
            router = Router(running)
            await check_answers(running, router)
            await check_chat(router)
            await check_what_the_kv_does_not_hold(router)
            await check_refusals(running, router)
            await check_replay(running, router)
            # What D never fetched went back when its lease ended.
            await running.at_rest(timeout_s=60.0)

    asyncio.run(run())
