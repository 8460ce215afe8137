"""Two network namespaces as two machines: proxy here, instances there, one cluster key between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from scripts.supervise import Child, start
from scripts.topology import ProcessPlan
from tests.e2e.cluster import DEMO_MODEL

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HERE, THERE = "10.203.77.1", "10.203.77.2"
KEY = "the secret of this little cluster"
API = "an-api-key"
FETCH = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], data=(sys.argv[2] or "").encode() or None)
request.add_header("Authorization", "Bearer " + sys.argv[3])
request.add_header("Content-Type", "application/json")
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10)


class Machines:
    """Namespaces `a` (the proxy's) and `b`, joined by a cable; whatever runs in them ends."""

    def __init__(self, directory):
        self.directory = directory
        self.a, self.b = f"xpyd-a{os.getpid()}", f"xpyd-b{os.getpid()}"
        self.children: list[Child] = []

    def set_up(self):
        self.cable = cable = f"xp{os.getpid()}"
        steps = [
            f"netns add {self.a}",
            f"netns add {self.b}",
            f"link add {cable}a netns {self.a} type veth peer name {cable}b netns {self.b}",
            f"-n {self.a} addr add {HERE}/24 dev {cable}a",
            f"-n {self.b} addr add {THERE}/24 dev {cable}b",
            f"-n {self.a} link set {cable}a up",
            f"-n {self.b} link set {cable}b up",
            f"-n {self.a} link set lo up",
            f"-n {self.b} link set lo up",
        ]
        for step in steps:
            done = ip(*step.split())
            if done.returncode:
                pytest.skip(f"this machine makes no network namespaces: {done.stderr.strip()}")

    def plug(self, state):
        """The cable's far end, `up` or `down`: nothing comes through, and nobody is told."""
        assert ip("-n", self.b, "link", "set", f"{self.cable}b", state).returncode == 0

    def tear_down(self):
        for child in self.children:
            if child.process.poll() is None:
                child.process.terminate()
        for child in self.children:
            try:
                child.process.wait(15)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        for namespace in (self.a, self.b):
            ip("netns", "del", namespace)

    def run(self, namespace, name, *arguments, key=KEY):
        argv = ["ip", "netns", "exec", namespace, sys.executable, "-m", "scripts.cli", *arguments]
        env = {"XPYD_CLUSTER_KEY": key, "HF_HUB_OFFLINE": "1"}
        log = self.directory / f"{name}.log"
        child = start(ProcessPlan(name, "decode", "", argv, env, log))
        self.children.append(child)
        return child

    def fetch(self, namespace, url, body="", key=API):
        """What a client in that namespace gets; None if it is refused."""
        argv = ["ip", "netns", "exec", namespace, sys.executable, "-c", FETCH, url, body, key]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def instances(self):
        found = self.fetch(self.a, f"http://{HERE}:8000/instances")
        return [] if found is None else found["instances"]

    def wait(self, condition, timeout_s=120.0):
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            for child in self.children:
                assert child.death() is None, f"{child.death()}\n{self.logs()}"
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.3)
        return found

    def logs(self):
        paths = sorted(self.directory.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


@pytest.fixture
def machines(tmp_path):
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    made = Machines(tmp_path)
    with ExitStack() as stack:
        stack.callback(made.tear_down)
        made.set_up()
        yield made


def serve(role, port, *arguments):
    return ("serve", DEMO_MODEL, "--role", role, "--port", str(port), *arguments)


def test_a_fleet_over_two_machines(machines):
    proxy = machines.run(
        machines.a,
        "proxy",
        *("proxy", "--host", HERE, "--registry-host", HERE, "--api-key", API),
        *("--prefill", f"{THERE}:8100"),
    )
    # One is asked over HTTP, which needs the proxy's token; one registers from a wildcard address.
    prefill = ("--host", THERE, "--api-key", "another-key", "--internal-host", THERE)
    machines.run(machines.b, "prefill", *serve("prefill", 8100, *prefill))
    register = ("--registry", f"{HERE}:30001")
    machines.run(
        machines.b, "decode", *serve("decode", 8200, "--internal-host", "0.0.0.0", *register)
    )
    rows = machines.wait(
        lambda: (
            [row for row in machines.instances() if row["state"] == "ready"][1:]
            and machines.instances()
        )
    )
    assert {row["endpoint"].split(":")[1] for row in rows} == {f"//{THERE}"}
    greedy = {"max_tokens": 12, "temperature": 0}
    body = json.dumps({"token_ids": [5, 6, 7] * 30, "sampling_params": greedy})
    answer = machines.wait(
        lambda: machines.fetch(machines.b, f"http://{HERE}:8000/inference/v1/generate", body), 20
    )
    assert len(answer["choices"][0]["token_ids"]) == 12
    page = f"http://{THERE}:8100/instance"
    assert machines.fetch(machines.b, page, key="another-key")["role"] == "prefill"
    assert machines.fetch(machines.b, page, key=API) is None

    before = {row["id"] for row in rows}
    intruder = machines.run(
        machines.b,
        "intruder",
        *serve("decode", 8300, "--internal-host", THERE, *register),
        key="some other secret, guessed",
    )
    machines.wait(lambda: "no handshake with" in intruder.plan.log.read_text())
    time.sleep(2.0)
    assert {row["id"] for row in machines.instances()} == before
    assert "takes the right cluster key" in proxy.plan.log.read_text()
    again = machines.fetch(machines.b, f"http://{HERE}:8000/inference/v1/generate", body)
    assert again["choices"] == answer["choices"]


@pytest.mark.long
def test_a_cable_pulled_out_and_put_back(machines):
    """A decode instance on each machine, the rest here; what ran there goes on here."""
    proxy = ("proxy", "--host", HERE, "--registry-host", HERE, "--api-key", API)
    machines.run(machines.a, "proxy", *proxy, "--decode-policy", "round_robin")
    register = ("--registry", f"{HERE}:30001")
    for namespace, host, port, role in (
        (machines.a, HERE, 8100, "prefill"),
        (machines.a, HERE, 8200, "decode"),
        (machines.b, THERE, 8201, "decode"),
    ):
        links = ("--internal-host", host, *register)
        machines.run(namespace, f"{role}-{host}", *serve(role, port, *links))

    def states():
        return [row["state"] for row in machines.instances()]

    def is_busy_there():
        return any(r["requests"] for r in machines.instances() if THERE in r["endpoint"])

    url = f"http://{HERE}:8000/inference/v1/generate"
    long = {"max_tokens": 500, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    body = json.dumps({"token_ids": [5, 6, 7] * 30, "sampling_params": long})
    machines.wait(lambda: states() == ["ready"] * 3)
    expected = machines.fetch(machines.a, url, body)["choices"]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(machines.fetch, machines.a, url, body) for _ in range(4)]
        machines.wait(is_busy_there)
        machines.plug("down")
        for answer in answers:
            assert answer.result()["choices"] == expected
    machines.wait(lambda: "dead" in states())
    machines.plug("up")
    machines.wait(lambda: states() == ["ready"] * 3)
    assert machines.fetch(machines.a, url, body)["choices"] == expected
