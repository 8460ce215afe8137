"""`POST /role` with real processes: weights stay, streams go on, nothing is left behind."""

import asyncio

import pytest

from tests.e2e.cluster import cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "1024", "--kv-cache-memory", "64MiB"),
    *("--max-num-batched-tokens", "64"),
)
PROMPT = [i % 700 for i in range(80)]
ANSWER = {"max_tokens": 160, "ignore_eos": True, "temperature": 0}
ADMIN = {"x-api-key": "the administrator"}


async def streamed(made):
    seen = []
    async for event in made.stream(made.url, PROMPT, **ANSWER):
        assert "error" not in event, event
        for choice in event["choices"]:
            seen += choice["token_ids"]
    return seen


async def post(made, url, body, headers=ADMIN):
    async with made.session.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def roles(made):
    rows = (await made.get(f"{made.url}/instances"))["instances"]
    return sorted(row["role"] for row in rows if row["state"] == "ready")


def test_a_running_instance_changes_its_role_under_load(tmp_path, monkeypatch):
    monkeypatch.setenv("ADMIN_API_KEY", "the administrator")

    async def body():
        async with cluster(tmp_path, prefill=1, decode=2, arguments=ARGUMENTS) as made:
            expected = await made.generate(made.url, PROMPT, **ANSWER)
            moving = made.of("decode")[0]
            door = f"{moving.plan.url}/role"
            before = await made.get(f"{moving.plan.url}/instance")

            status, _ = await post(made, door, {"role": "prefill"}, headers={})
            assert status == 401
            status, refusal = await post(made, door, {"role": "router"})
            assert (status, refusal["error"]["param"]) == (400, "role")

            # Moved at once: what it decodes goes on elsewhere, with the same tokens.
            running = [asyncio.create_task(streamed(made)) for _ in range(4)]
            await asyncio.sleep(0.3)
            name = moving.plan.url.removeprefix("http://")
            wish = {"instance": name, "role": "prefill", "drain_s": 0}
            status, said = await post(made, f"{made.url}/instances/role", wish)
            assert (status, said.get("was")) == (200, "decode"), said
            assert await asyncio.gather(*running) == [expected] * 4
            assert await roles(made) == ["decode", "prefill", "prefill"]
            now = await made.get(f"{moving.plan.url}/instance")
            assert now["instance_id"] == before["instance_id"]
            assert now["incarnation"] != before["incarnation"]
            assert (before["side_channel"], now["side_channel"] != "") == ("", True)

            # It does its new work.
            await asyncio.gather(*(streamed(made) for _ in range(6)))
            metrics = await made.metrics(moving)
            assert metrics["kv_offered_total"] > 0
            assert metrics["role_changes_total"] == 1

            # And back, by its own door, finishing what it has.
            running = [asyncio.create_task(streamed(made)) for _ in range(4)]
            status, said = await post(made, door, {"role": "decode"})
            assert (status, said["role"]) == (200, "decode"), said
            assert await asyncio.gather(*running) == [expected] * 4
            assert await streamed(made) == expected
            await made.at_rest(timeout_s=20.0)

    asyncio.run(body())
