"""`xpyd proxy --workers`: one port, several processes, over stand-in instances."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port
from tests.proxy.processes import MODEL, ROOT, popen

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WORKERS = 2
ADMIN = {"x-api-key": "the administrator"}


class Port:
    """The parent, and two stand-ins that register with it."""

    def __init__(self, directory, *flags):
        self.port, registry = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "proxy.log"
        with open(self.log, "wb") as log:
            self.parent = subprocess.Popen(
                [
                    *(sys.executable, "-m", "scripts.cli", "proxy", "--port", str(self.port)),
                    *("--registry-port", str(registry), "--workers", str(WORKERS), *flags),
                ],
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(ROOT), "ADMIN_API_KEY": ADMIN["x-api-key"]},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.standins = [
            popen(
                *("-m", "benchmarks.standin_instance", "--role", role, "--instance-id", role),
                *("--registry", f"127.0.0.1:{registry}", "--model", "demo"),
                *("--model-path", str(MODEL), "--step-s", "0.02"),
                stdout=subprocess.DEVNULL,
            )
            for role in ("prefill", "decode")
        ]

    def workers(self):
        """Pids, from the kernel's list of the parent's children."""
        text = (f"/proc/{self.parent.pid}/task/{self.parent.pid}/children",)
        with open(*text) as file:
            return [int(pid) for pid in file.read().split()]

    def each(self, method, path, *, tries=40, **options):
        """The answers of many connections, each on its own: they meet all workers."""
        return [
            httpx.request(method, f"{self.url}{path}", timeout=30, **options) for _ in range(tries)
        ]

    def until(self, condition, timeout_s=90):
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except (httpx.TransportError, OSError):
                pass
            assert self.parent.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def all_ready(self):
        return len(self.workers()) == WORKERS and all(
            answer.status_code == 200
            and answer.json()["is_ready"]
            and len(answer.json()["workers"]["answered"]) == WORKERS
            for answer in self.each("GET", "/status", tries=12)
        )

    def close(self):
        for process in (self.parent, *self.standins):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    made = Port(tmp_path_factory.mktemp("workers"))
    try:
        made.until(made.all_ready)
        yield made
    finally:
        made.close()


def samples(page, name):
    """Added up over all labels but those of instances, of which ready prefills count."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and sample.labels.get("role", "prefill") == "prefill"
        if sample.labels.get("state", "ready") == "ready"
    )


def test_all_workers_serve_and_pages_are_of_all_of_them(port):
    """Whoever is asked: every request is counted, and every instance is shown once."""
    before = port.each("GET", "/status", tries=1)[0].json()["counts"]["requests"]
    body = {"model": "demo", "prompt": "hello", "max_tokens": 4, "temperature": 0}
    answers = port.each("POST", "/v1/completions", json=body, tries=24)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    for answer in port.each("GET", "/status", tries=8):
        status = answer.json()
        assert status["counts"]["requests"] == before + 24
        assert status["topology"] == "1P1D" and len(status["instances"]) == 2
        assert status["recent"]["ttft"]["count"] >= 24
        assert [worker["number"] for worker in status["workers"]["answered"]] == [0, 1]
        assert {worker["pid"] for worker in status["workers"]["answered"]} == set(port.workers())
    for answer in port.each("GET", "/metrics", tries=8):
        page = answer.text
        assert samples(page, "xpyd:instances") == 1.0
        assert samples(page, "xpyd:num_requests_running") == 0.0
        assert samples(page, "xpyd:request_success_total") == before + 24
        assert samples(page, "xpyd:e2e_request_latency_seconds_count") == before + 24
        assert page == page.strip() + "\n"
    assert port.each("GET", "/load", tries=1)[0].json() == {"server_load": 0}


def test_a_stored_response_is_found_whoever_is_asked(port):
    body = {"model": "demo", "input": "hello", "max_output_tokens": 4, "temperature": 0}
    made = port.each("POST", "/v1/responses", json=body, tries=1)[0].json()
    path = f"/v1/responses/{made['id']}"
    found = port.each("GET", path, tries=24)
    assert [answer.json().get("id") for answer in found] == [made["id"]] * 24
    items = port.each("GET", f"{path}/input_items", tries=12)
    assert {answer.status_code for answer in items} == {200}
    follow = {**body, "previous_response_id": made["id"]}
    answers = port.each("POST", "/v1/responses", json=follow, tries=12)
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    streams = port.each("POST", "/v1/responses", json={**follow, "stream": True}, tries=6)
    assert all("response.completed" in s.text or "response.incomplete" in s.text for s in streams)
    assert port.each("DELETE", path, tries=1)[0].json()["deleted"] is True
    gone = port.each("GET", path, tries=12)
    assert {answer.status_code for answer in gone} == {404}
    missing = port.each("POST", "/v1/responses", json=follow, tries=6)
    assert {a.json()["error"]["code"] for a in missing} == {"previous_response_not_found"}


def test_a_change_reaches_all_workers(port):
    def drained():
        states = set()
        for answer in port.each("GET", "/instances", tries=24):
            states |= {i["state"] for i in answer.json()["instances"] if i["id"] == "prefill"}
        return states

    change = {"instance": "prefill", "drain": True}
    path = "/instances/drain"
    refused = httpx.post(f"{port.url}{path}", json=change)
    assert refused.status_code == 401
    assert drained() == {"ready"}
    assert httpx.post(f"{port.url}{path}", json=change, headers=ADMIN).status_code == 200
    assert drained() == {"draining"}
    victim = port.workers()[0]  # its successor is to know, too
    os.kill(victim, signal.SIGKILL)
    port.until(lambda: victim not in port.workers() and port.all_ready())
    assert drained() == {"draining"}
    change["drain"] = False
    assert httpx.post(f"{port.url}{path}", json=change, headers=ADMIN).status_code == 200
    assert drained() == {"ready"}


def test_a_worker_that_dies_is_started_again(port):
    """And nothing that was counted is forgotten."""
    counted = samples(port.each("GET", "/metrics", tries=1)[0].text, "xpyd:request_success_total")
    victim = port.workers()[0]
    os.kill(victim, signal.SIGKILL)
    port.until(lambda: victim not in port.workers() and port.all_ready())
    body = {"model": "demo", "prompt": "hello", "max_tokens": 4}
    answers = port.each("POST", "/v1/completions", json=body, tries=24)
    assert {answer.status_code for answer in answers} == {200}
    assert "ended with status -9 and starts again in 1 s" in port.log.read_text()
    for answer in port.each("GET", "/metrics", tries=6):
        assert samples(answer.text, "xpyd:request_success_total") == counted + 24


def test_a_rate_is_one_for_all_workers(tmp_path):
    """Ten a minute: whoever is asked, ten answers and what has flowed back since."""
    limited = Port(tmp_path, "--requests-per-minute", "10")
    try:
        limited.until(limited.all_ready)
        body = {"model": "demo", "prompt": "hello", "max_tokens": 1}
        began = time.monotonic()
        answers = limited.each("POST", "/v1/completions", json=body, tries=40)
        flowed_back = (time.monotonic() - began) / 6
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert 10 <= statuses.count(200) <= 10 + flowed_back
        left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers[:10]]
        assert left == sorted(left, reverse=True) or flowed_back > 1
    finally:
        limited.close()


def test_a_second_parent_at_the_same_port_is_refused(port):
    second = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.cli", "proxy", "--workers", "2"),
            *("--port", str(port.port), "--registry-port", str(free_port())),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert f"port {port.port} on 127.0.0.1 is in use" in second.stderr


def test_sigterm_finishes_what_runs_and_ends_all(port):
    """The last one: it ends the port."""
    body = {"model": "demo", "prompt": "hello", "max_tokens": 60, "temperature": 0, "stream": True}
    workers = port.workers()
    texts: list[dict[str, object]] = []
    with httpx.stream("POST", f"{port.url}/v1/completions", json=body, timeout=60) as stream:
        for line in stream.iter_lines():
            if not texts:
                port.parent.terminate()
            if line.startswith("data: {"):
                texts += json.loads(line[6:])["choices"]
    assert texts[-1]["finish_reason"] == "length"
    assert port.parent.wait(60) == 0, port.log.read_text()
    for pid in workers:
        assert not os.path.exists(f"/proc/{pid}")
