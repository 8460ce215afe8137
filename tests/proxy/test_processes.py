"""Real processes: killed, stopped, restarted and drained under running streams."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.proxy.processes import MODEL, Cluster, Stream, cluster

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (MODEL / "tokenizer.json").exists(), reason="no bundled tokenizer"),
]
STEPS = {"step-s": 0.02}
NUM_TOKENS = 100  # two seconds at that pace


@pytest.fixture(scope="module")
def expected():
    """The undisturbed answer, from one instance that does everything."""
    with cluster(0, 1, {"step-s": 0.001}) as one:
        stream = Stream(one.url, NUM_TOKENS).read()
        assert stream.finish == "length"
        return stream.text


def test_openai_sdk(expected):
    with (
        cluster(2, 2, {"step-s": 0.001}) as fleet,
        openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["demo"]
        whole = client.completions.create(
            model="demo", prompt="Say something", max_tokens=NUM_TOKENS, temperature=0
        )
        assert whole.choices[0].text == expected
        assert whole.usage and whole.usage.completion_tokens == NUM_TOKENS
        question: Any = [{"role": "user", "content": "Hello"}]
        answer = client.chat.completions.create(
            model="demo", messages=question, max_tokens=20, temperature=0
        )
        pieces: Any = client.chat.completions.create(
            model="demo", messages=question, max_tokens=20, temperature=0, stream=True
        )
        streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert streamed == answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="x")
        assert fleet.status()["topology"] == "2P2D"


@pytest.mark.parametrize("victims", [("1P1D", "d"), ("1P1D", "p"), ("2P2D", "d", "p")])
def test_kill_under_load(victims, expected):
    size = int(victims[0][0])
    with cluster(size, size, STEPS) as fleet:
        for role in victims[1:]:
            streams = [Stream(fleet.url, NUM_TOKENS).read(5) for _ in range(4)]
            busy = [i["id"] for i in fleet.status()["instances"] if i["requests"]]
            victim = next((name for name in busy if name[0] == role), f"{role}0")
            fleet.signal(victim, signal.SIGKILL)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(Stream.read, streams))
            for stream in streams:
                assert stream.error is None
                assert stream.text == expected
                assert stream.longest_pause_s < 2.0
            fleet.wait(lambda victim=victim: fleet.states().get(victim) == "dead")


def test_prefill_killed_while_prefilling(expected):
    with (
        cluster(2, 1, {"step-s": 0.001, "prefill-s": 1.0}) as fleet,
        ThreadPoolExecutor(1) as pool,
    ):
        began = time.monotonic()
        answer = pool.submit(lambda: Stream(fleet.url, NUM_TOKENS).read())
        fleet.wait(lambda: any(i["requests"] for i in fleet.status()["instances"]))
        busy = [i["id"] for i in fleet.status()["instances"] if i["requests"]]
        fleet.signal(next(name for name in busy if name[0] == "p"), signal.SIGKILL)
        assert answer.result().text == expected
        assert time.monotonic() - began < 9.0


def test_a_stopped_instance_is_noticed_and_may_come_back(expected):
    with cluster(1, 2, STEPS) as fleet:
        stream = Stream(fleet.url, NUM_TOKENS).read(5)
        busy = next(i["id"] for i in fleet.status()["instances"] if i["requests"])
        fleet.signal(busy, signal.SIGSTOP)
        stream.read()
        assert stream.text == expected
        assert 1.0 < stream.longest_pause_s < 5.0
        fleet.wait(lambda: fleet.states().get(busy) == "dead")
        fleet.signal(busy, signal.SIGCONT)
        fleet.wait_ready(3)
        assert Stream(fleet.url, NUM_TOKENS).read().text == expected


def test_a_short_stop_moves_nothing(expected):
    with cluster(1, 2, STEPS) as fleet:
        stream = Stream(fleet.url, NUM_TOKENS).read(5)
        busy = next(i["id"] for i in fleet.status()["instances"] if i["requests"])
        fleet.signal(busy, signal.SIGSTOP)
        time.sleep(1.0)
        fleet.signal(busy, signal.SIGCONT)
        assert stream.read().text == expected
        assert fleet.status()["counts"]["migrations"] == 0


def test_a_proxy_that_was_stopped_itself_goes_on(expected):
    with cluster(1, 1, STEPS) as fleet:
        streams = [Stream(fleet.url, NUM_TOKENS).read(5) for _ in range(3)]
        fleet.proxy.send_signal(signal.SIGSTOP)
        time.sleep(4.0)  # long enough for the instances to give it up
        fleet.proxy.send_signal(signal.SIGCONT)
        for stream in streams:
            assert stream.read().text == expected
            assert stream.error is None
        assert set(fleet.states().values()) == {"ready"}


def test_a_client_that_hangs_up_is_noticed():
    with cluster(1, 1, STEPS) as fleet:
        streams = [Stream(fleet.url, 5000).read(3) for _ in range(3)]
        assert fleet.status()["requests_in_flight"] == 3
        for stream in streams:
            stream.close()
        fleet.wait(lambda: fleet.status()["requests_in_flight"] == 0, 2.0)
        fleet.wait(lambda: all(i["load"]["num_running"] == 0 for i in fleet.status()["instances"]))
        assert fleet.status()["counts"]["aborted"] == 3


def test_a_restart_at_the_same_port_is_used_again(expected):
    with cluster(1, 1, {"step-s": 0.001}) as fleet:
        before = {i["id"]: i["incarnation"] for i in fleet.status()["instances"]}
        process, address = fleet.standins["d0"]
        process.kill()
        process.wait()
        assert Stream(fleet.url, NUM_TOKENS).read().text == expected
        port = int(address.rpartition(":")[2])
        fleet.start_standin("d0", "decode", port=port)
        fleet.addresses()
        fleet.wait_ready(2)
        after = {i["id"]: i["incarnation"] for i in fleet.status()["instances"]}
        assert after["p0"] == before["p0"]
        assert after["d0"] != before["d0"]
        assert Stream(fleet.url, NUM_TOKENS).read().text == expected


def test_without_instances_requests_are_refused_quickly():
    with cluster(1, 1) as fleet:
        for name in ("p0", "d0"):
            fleet.signal(name, signal.SIGKILL)
        fleet.wait(lambda: "ready" not in fleet.states().values())
        began = time.monotonic()
        refused = httpx.post(f"{fleet.url}/v1/completions", json={"prompt": "x", "max_tokens": 3})
        assert time.monotonic() - began < 5.0
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{fleet.url}/health").status_code == 503


def test_instances_that_register_serve(expected):
    fleet = Cluster()
    try:
        fleet.start_proxy()
        for name, role in (("p0", "prefill"), ("d0", "decode")):
            fleet.start_standin(name, role, registry=f"127.0.0.1:{fleet.registry_port}")
        fleet.wait_ready(2)
        assert Stream(fleet.url, NUM_TOKENS).read().text == expected
        assert {i["source"] for i in fleet.status()["instances"]} == {"registry"}
    finally:
        fleet.close()


def test_a_signal_lets_streams_finish_and_exits_with_0(expected):
    with cluster(1, 1, STEPS) as fleet:
        stream = Stream(fleet.url, NUM_TOKENS).read(5)
        fleet.proxy.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        refused = httpx.post(f"{fleet.url}/v1/completions", json={"prompt": "x", "max_tokens": 3})
        assert refused.status_code == 503
        assert stream.read().text == expected
        assert fleet.proxy.wait(5) == 0


def test_a_second_signal_ends_at_once():
    with cluster(1, 1, STEPS) as fleet:
        stream = Stream(fleet.url, 5000).read(5)
        fleet.proxy.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert fleet.proxy.poll() is None
        fleet.proxy.send_signal(signal.SIGINT)
        assert fleet.proxy.wait(5) == 0
        stream.close()


def test_a_port_in_use_is_one_clear_line():
    with cluster(0, 1) as fleet:
        first = fleet.proxy
        fleet.start_proxy(registry_port=0)
        _, complaint = fleet.proxy.communicate(timeout=20)
        assert fleet.proxy.returncode == 1
        assert complaint.decode().count("\n") == 1
        assert str(fleet.port) in complaint.decode()
        assert first.poll() is None
