"""The proxy's HTTP side over stand-ins, in process: health, status, administration, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.standin_instance import Standin, StandinInstance
from common.admission.admission import AdmissionLimits
from common.api.settings import ApiSettings
from common.errors import ConfigError
from proxy.server import ProxySettings, build_app, build_fleet, drain
from tests.proxy.fleet_of_standins import FAST, until

ADMIN = {"x-api-key": "root"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("model")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text('{"vocab_size": 256}')
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


@contextlib.asynccontextmanager
async def proxy(*configs, ready=True, **settings):
    """Yields (HTTP client, fleet, instances)."""
    instances = [StandinInstance(config) for config in configs]
    for instance in instances:
        await instance.start()
    addresses = tuple(instance.address for instance in instances)
    chosen = ProxySettings(prefill=addresses, timing=FAST, registry_port=None, **settings)
    fleet = build_fleet(chosen)
    fleet.start()
    app = build_app(chosen, fleet)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")
    try:
        async with app.router.lifespan_context(app):
            if instances:
                await until(lambda: sum(i.is_connected for i in members(fleet)) == len(instances))
                if ready:
                    await until(fleet.can_read)
            yield client, fleet, instances
    finally:
        await client.aclose()
        await fleet.close()
        for instance in instances:
            await instance.close()


def members(fleet):
    return fleet.membership.members.values()


def standins(model_dir, **changes):
    shared = {"model": "demo", "model_path": str(model_dir), "first_id": 0, **changes}
    return Standin("prefill", "p0", **shared), Standin("decode", "d0", **shared)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_completions_through_the_fleet(model_dir):
    async def scenario():
        async with proxy(*standins(model_dir)) as (client, _, _):
            body = {"model": "demo", "prompt": "hello", "max_tokens": 7, "temperature": 0}
            answer = (await client.post("/v1/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == 5
            assert answer["usage"]["completion_tokens"] == 7
            again = (await client.post("/v1/completions", json=body)).json()
            assert again["choices"] == answer["choices"]
            models = (await client.get("/v1/models")).json()["data"]
            assert [m["id"] for m in models] == ["demo"]

    run(scenario())


def test_health_follows_the_fleet(model_dir):
    async def scenario():
        async with proxy() as (client, _, _):
            assert (await client.get("/health")).status_code == 503
            refused = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
        async with proxy(*standins(model_dir)) as (client, fleet, _):
            assert (await client.get("/health")).status_code == 200
            fleet.is_draining = True
            assert (await client.get("/health")).status_code == 503

    run(scenario())


def test_a_mismatch_reaches_the_client_by_name(model_dir):
    async def scenario():
        prefill, _ = standins(model_dir)
        _, decode = standins(model_dir, kv_fingerprint="other")
        async with proxy(prefill, decode) as (client, _, _):
            assert (await client.get("/health")).status_code == 503
            body = {"model": "demo", "prompt": "x", "max_tokens": 1}
            refused = await client.post("/v1/completions", json=body)
            assert refused.status_code == 503
            assert "kv_fingerprint" in refused.json()["error"]["message"]

    run(scenario())


def test_a_full_fleet_makes_requests_wait_and_a_full_queue_says_429(model_dir):
    async def scenario():
        configs = standins(model_dir, prefill_s=60.0, max_num_seqs=1)  # that makes three seats
        limits = AdmissionLimits(max_waiting=1)
        async with proxy(*configs, admission=limits) as (client, fleet, (p, _)):
            room = fleet.admission
            body = {"model": "demo", "prompt": "x", "max_tokens": 2}

            def ask():
                return asyncio.create_task(client.post("/v1/completions", json=body))

            asked = [ask() for _ in range(3)]
            await until(lambda: fleet.num_in_flight == 3)
            asked.append(ask())
            await until(lambda: room.num_waiting == 1)
            assert fleet.num_in_flight == 3
            refused = await ask()
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            metrics = (await client.get("/metrics")).text
            assert re.search(r"admission_queue_requests{.*} 1.0", metrics)
            assert re.search(r'rejections_total{.*reason="queue_full".*} 1.0', metrics)
            asked[0].cancel()  # a seat becomes free
            await until(lambda: room.num_waiting == 0 and fleet.num_in_flight == 3)
            last = ask()
            await until(lambda: room.num_waiting == 1)
            closing = asyncio.create_task(drain(fleet, 60.0))
            assert (await last).status_code == 503  # it had not been accepted
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await closing
            assert (room.num_running, room.num_waiting, room.num_waiting_tokens) == (0, 0, 0)
            await until(lambda: not (p.tasks or p.offers))

    run(scenario())


def test_a_request_that_would_miss_the_target_is_told_when_to_come_back(model_dir):
    async def scenario():
        configs = standins(model_dir, prefill_token_s=0.005)
        limits = AdmissionLimits(slo_ttft_s=2.0)
        async with proxy(*configs, admission=limits) as (client, fleet, _):

            def ask(num_tokens):
                body = {"model": "demo", "prompt": "x" * num_tokens, "max_tokens": 1}
                return asyncio.create_task(client.post("/v1/completions", json=body))

            for num_tokens in (20, 60, 100):  # it learns
                assert (await ask(num_tokens)).status_code == 200
            long = ask(4000)  # twenty seconds all by itself: let in, for nothing is before it
            await until(lambda: fleet.backlog() >= 4000)
            refused = await ask(20)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "ttft_too_long"
            assert 10 <= int(refused.headers["retry-after"]) <= 60
            long.cancel()
            await until(lambda: fleet.backlog() == 0)
            assert (await ask(20)).status_code == 200

    run(scenario())


def test_an_unreadable_tokenizer_is_told_not_guessed():
    async def scenario():
        async with proxy(Standin("both", model_path="/nowhere"), ready=False) as (client, _, _):
            assert (await client.get("/health")).status_code == 503
            await asyncio.sleep(0.3)
            refused = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
            assert refused.status_code == 503
            message = refused.json()["error"]["message"]
            assert "--tokenizer" in message
            assert "/nowhere" not in message

    run(scenario())


def test_a_tokenizer_of_the_operators_choice(model_dir):
    async def scenario():
        both = Standin("both", model_path="/nowhere", first_id=0)
        async with proxy(both, tokenizer=str(model_dir)) as (client, _, _):
            body = {"prompt": "abc", "max_tokens": 1}
            answer = await client.post("/v1/completions", json=body)
            assert answer.json()["usage"]["prompt_tokens"] == 3

    run(scenario())


def test_status_and_page(model_dir):
    async def scenario():
        async with proxy(*standins(model_dir)) as (client, _, _):
            status = (await client.get("/status")).json()
            assert status["topology"] == "1P1D"
            assert status["is_ready"]
            assert {i["id"]: i["state"] for i in status["instances"]} == {
                "p0": "ready",
                "d0": "ready",
            }
            listed = (await client.get("/instances")).json()["instances"]
            assert listed == status["instances"]
            page = await client.get("/")
            assert page.headers["content-type"].startswith("text/html")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert "http://" not in page.text.replace("http://proxy", "")

    run(scenario())


def test_metrics(model_dir):
    async def scenario():
        async with proxy(*standins(model_dir)) as (client, fleet, (p, d)):
            body = {"prompt": "hello", "max_tokens": 100_000 // 16, "stream": True}
            reading = asyncio.create_task(client.post("/v1/completions", json=body))
            await until(lambda: bool(d.sequences))
            await p.close()
            await d.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await until(lambda: all(m.state.value == "dead" for m in members(fleet)))
            text = (await client.get("/metrics")).text
            samples = {
                (s.name, s.labels.get("role"), s.labels.get("state")): s.value
                for family in text_string_to_metric_families(text)
                for s in family.samples
            }
            assert samples["xpyd:instances", "prefill", "dead"] == 1
            assert samples["xpyd:instances", "decode", "ready"] == 0
            assert samples["xpyd:instances_lost_total", None, None] >= 2
            assert samples["xpyd:num_requests_running", None, None] == 0

    run(scenario())


# --- administration ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/instances/add", "/instances/remove", "/instances/drain"])
def test_administration_needs_its_own_key(path):
    async def scenario():
        body = {"instance": "127.0.0.1:1"}
        async with proxy() as (client, fleet, _):
            assert (await client.post(path, json=body)).status_code == 403
            assert (await client.post(path, json=body, headers=ADMIN)).status_code == 403
            assert not fleet.membership.targets
        async with proxy(admin_key="root", api=ApiSettings(api_keys=("user",))) as (
            client,
            fleet,
            _,
        ):
            assert (await client.get(path, headers=ADMIN)).status_code == 405
            for headers in ({}, {"x-api-key": "user"}, {"authorization": "Bearer roo"}):
                refused = await client.post(path, json=body, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
            assert not fleet.membership.targets
            allowed = await client.post(path, json=body, headers={"authorization": "Bearer root"})
            assert allowed.status_code == (200 if path.endswith("add") else 404)

    run(scenario())


def test_user_keys_guard_the_pages():
    async def scenario():
        async with proxy(api=ApiSettings(api_keys=("user",))) as (client, _, _):
            for path in ("/", "/status", "/instances", "/metrics", "/v1/models"):
                assert (await client.get(path)).status_code == 401
                allowed = await client.get(path, headers={"authorization": "Bearer user"})
                assert allowed.status_code == 200
            assert (await client.get("/health")).status_code == 503

    run(scenario())


def test_add_drain_and_remove(model_dir):
    async def scenario():
        async with proxy(admin_key="root") as (client, fleet, _):

            async def post(action, **body):
                answer = await client.post(f"/instances/{action}", json=body, headers=ADMIN)
                return answer.json()

            instance = StandinInstance(Standin("both", "b", model_path=str(model_dir), first_id=0))
            await instance.start()
            assert (await post("add", instance=instance.address))["id"] == "b"
            await until(fleet.is_ready)
            body = {"prompt": "x", "max_tokens": 2}
            assert (await client.post("/v1/completions", json=body)).status_code == 200

            assert (await post("drain", instance="b"))["draining"] is True
            assert not fleet.is_ready()
            assert (await client.post("/v1/completions", json=body)).status_code == 503
            await post("drain", instance=instance.address, drain=False)
            assert fleet.is_ready()

            assert (await post("remove", instance=instance.address))["id"] == "b"
            assert (await client.get("/instances")).json() == {"instances": []}
            await asyncio.sleep(0.5)
            assert not fleet.is_ready()
            assert (await post("add", instance=instance.address))["id"] == "b"
            await until(fleet.is_ready)
            await instance.close()

    run(scenario())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instance": 3},
        {"instance": ""},
        {"instance": "no-port"},
        {"instance": "host:99999"},
        {"instance": "x" * 300},
    ],
)
def test_bad_addresses_are_refused(body):
    async def scenario():
        async with proxy(admin_key="root") as (client, fleet, _):
            refused = await client.post("/instances/add", json=body, headers=ADMIN)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "instance"
            assert not fleet.membership.targets

    run(scenario())


def test_an_address_without_an_instance_is_named():
    async def scenario():
        async with proxy(admin_key="root") as (client, _, _):
            body = {"instance": "127.0.0.1:9"}
            added = (await client.post("/instances/add", json=body, headers=ADMIN)).json()
            assert added["id"] is None
            assert added["complaint"]
            watched = (await client.get("/status")).json()["watched"]
            assert watched[0]["complaint"] == added["complaint"]
            removed = await client.post("/instances/remove", json=body, headers=ADMIN)
            assert removed.status_code == 200
            assert (await client.get("/status")).json()["watched"] == []

    run(scenario())


def test_unknown_policies_are_refused_at_start():
    with pytest.raises(ConfigError, match="least_loaded"):
        ProxySettings(prefill_policy="no_such_policy")
