"""Fairness, rates, deadlines and slow readers at a real proxy, over stand-ins, by real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.proxy.processes import MODEL, Cluster, cluster, popen

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (MODEL / "tokenizer.json").exists(), reason="no bundled tokenizer"),
]
KEYS = "limited requests-per-minute=2\ngreedy\nmodest\noperator\n"
PATIENT_S = 120.0


class Guarded(Cluster):
    """With API keys; started by its command line."""

    def start(self, keys, *flags):
        addresses = self.addresses()
        arguments = ["--port", str(self.port), "--registry-port", str(self.registry_port)]
        for instance_id, address in addresses.items():
            arguments += ["--prefill" if instance_id[0] == "p" else "--decode", address]
        arguments += ["--api-key-file", str(keys), *flags]
        self.proxy = popen("-m", "scripts.cli", "proxy", *arguments)
        self.processes.append(self.proxy)
        self.wait_ready(len(addresses))

    def get(self, path):
        return httpx.get(self.url + path, headers={"x-api-key": "operator"}, timeout=10)

    def status(self):
        return self.get("/status").json()

    def waiting(self):
        """How many requests wait in the proxy."""
        lines = self.get("/metrics").text.splitlines()
        return next(float(x.split()[-1]) for x in lines if ":admission_queue_requests{" in x)

    def client(self, key):
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENT_S
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEYS)
    made = Guarded()
    try:
        shared = {"max-num-seqs": 1, "step-s": 0.01, "prefill-token-s": 0.002}  # three seats
        made.start_standin("p0", "prefill", **shared)
        made.start_standin("d0", "decode", **shared)
        made.start(keys)
        yield made
    finally:
        made.close()


def at_rest(fleet):
    return fleet.status()["requests_in_flight"] == 0 and fleet.waiting() == 0


def test_a_greedy_key_does_not_starve_a_modest_one(fleet):
    order, lock = [], threading.Lock()

    def ask(key):
        with fleet.client(key) as client:
            client.completions.create(model="demo", prompt="Say something", max_tokens=30)
        with lock:
            order.append(key)

    with ThreadPoolExecutor(40) as pool:
        flood = [pool.submit(ask, "greedy") for _ in range(36)]
        fleet.wait(lambda: fleet.waiting() >= 24, PATIENT_S)
        ask("modest")
        for each in flood:
            each.result(PATIENT_S)
    # twelve at most were done or had a seat when it came; most others saw it pass
    assert order.index("modest") < 30
    fleet.wait(lambda: at_rest(fleet))


def test_the_limit_of_a_key_is_told_with_its_headers(fleet):
    with fleet.client("limited") as client:
        ask = {"model": "demo", "prompt": "x", "max_tokens": 1}
        first = client.completions.with_raw_response.create(**ask)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        client.completions.create(**ask)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**ask)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    with fleet.client("modest") as client:
        client.completions.create(**ask)


def test_deadlines_end_requests_wherever_they_are(fleet):
    ask = {"model": "demo", "prompt": "Say something", "max_tokens": 8000}
    with fleet.client("greedy") as client:
        soon = {"extra_body": {"timeout_s": 1.5}}
        pieces = client.completions.create(**ask, stream=True, **soon)
        with pytest.raises(openai.APIError, match="in the middle of its answer"):
            for _ in pieces:
                pass
        fleet.wait(lambda: at_rest(fleet))
        prompt = "word " * 3000  # six seconds and more of prefill
        with pytest.raises(openai.InternalServerError, match="before its first token"):
            client.completions.create(model="demo", prompt=prompt, max_tokens=1, **soon)
        fleet.wait(lambda: at_rest(fleet))
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                held = client.completions.create(**ask, stream=True)
                stack.callback(held.close)
                next(iter(held))
            with pytest.raises(openai.InternalServerError, match="while it waited") as late:
                client.completions.create(**ask, extra_headers={"X-Request-Timeout": "1.5"})
            assert late.value.status_code == 504
            assert late.value.response.headers["x-should-retry"] == "false"
        fleet.wait(lambda: at_rest(fleet))
        fleet.wait(lambda: all(i["requests"] == 0 for i in fleet.status()["instances"]))
        busy = ("num_running", "num_waiting", "num_waiting_tokens")
        fleet.wait(lambda: not any(i["load"][n] for i in fleet.status()["instances"] for n in busy))


def test_a_client_that_never_reads_is_bounded_and_cancelled():
    """Eight choices at some hundred bytes a token: more than sockets and we hold for it."""
    with cluster(1, 1, {"step-s": 0.002}) as fleet:
        body = {"prompt": "x", "max_tokens": 8000, "n": 8, "stream": True, "logprobs": 1}
        data = json.dumps(body).encode()
        before = _memory(fleet.proxy.pid)
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", fleet.port))
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            reader.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            fleet.wait(lambda: fleet.status()["requests_in_flight"] == 8)
            other = httpx.post(
                f"{fleet.url}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=60
            )
            assert other.status_code == 200
            fleet.wait(lambda: fleet.status()["requests_in_flight"] == 0, PATIENT_S)
            assert fleet.status()["counts"]["finished"] == 1  # the other
            assert _memory(fleet.proxy.pid) - before < 48 << 20


def _memory(pid):
    """Resident bytes."""
    with open(f"/proc/{pid}/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
