"""A proxy and stand-in instances as real processes, for tests that kill and stop them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "xpyd-demo"
_PROXY = (
    "import json, sys; from proxy.server import ProxySettings, run;"
    "sys.exit(run(ProxySettings(**json.loads(sys.argv[1]))))"
)


def popen(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **options)


class Cluster:
    """Starts processes and ends exactly those."""

    def __init__(self):
        self.processes = []
        self.standins = {}  # instance id: (process, host:port)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.registry_port = free_port()
        self.proxy = None

    def start_standin(self, instance_id, role, port=0, **options):
        flags = {
            "model": "demo",
            "model-path": str(MODEL),
            "instance-id": instance_id,
            "role": role,
            "port": port,
            **options,
        }
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        process = popen("-m", "benchmarks.standin_instance", *arguments, stdout=subprocess.PIPE)
        self.processes.append(process)
        self.standins[instance_id] = (process, "")

    def addresses(self):
        """host:port of each stand-in, once it has started."""
        for instance_id, (process, address) in list(self.standins.items()):
            if not address:
                address = process.stdout.readline().decode().strip()
                assert address, f"{instance_id} did not start"
                self.standins[instance_id] = (process, address)
        return {instance_id: address for instance_id, (_, address) in self.standins.items()}

    def start_proxy(self, **settings):
        settings = {"port": self.port, "registry_port": self.registry_port, **settings}
        self.proxy = popen("-c", _PROXY, json.dumps(settings), stderr=subprocess.PIPE)
        self.processes.append(self.proxy)

    def signal(self, instance_id, number):
        self.standins[instance_id][0].send_signal(number)

    def status(self):
        return httpx.get(f"{self.url}/status", timeout=2).json()

    def states(self):
        return {i["id"]: i["state"] for i in self.status()["instances"]}

    def wait(self, condition, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"it did not happen in {timeout_s} s: {self.status()}")

    def wait_ready(self, count):
        self.wait(lambda: list(self.states().values()).count("ready") == count)
        self.wait(lambda: httpx.get(f"{self.url}/health", timeout=2).status_code == 200)

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@contextlib.contextmanager
def cluster(prefills=1, decodes=1, standin=None, **settings):
    """A proxy over an XpYd set of static stand-ins, ready to serve."""
    found = Cluster()
    try:
        for role, count in (("prefill", prefills), ("decode", decodes)):
            for number in range(count):
                found.start_standin(f"{role[0]}{number}", role, **(standin or {}))
        addresses = found.addresses()
        found.start_proxy(
            prefill=[a for i, a in addresses.items() if i[0] == "p"],
            decode=[a for i, a in addresses.items() if i[0] == "d"],
            **settings,
        )
        found.wait_ready(prefills + decodes)
        yield found
    finally:
        found.close()


class Stream:
    """One streamed completion, read piece by piece; knows its longest pause."""

    def __init__(self, url, max_tokens, prompt="Say something", timeout_s=60.0):
        self._client = httpx.Client(timeout=timeout_s)
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        self._context = self._client.stream("POST", f"{url}/v1/completions", json=body)
        self.response = self._context.__enter__()
        self._lines = self.response.iter_lines()
        self.text = ""
        self.finish = None
        self.error = None
        self.longest_pause_s = 0.0
        self._last = time.monotonic()

    def read(self, pieces=10**9):
        """Up to so many pieces; the whole rest by default."""
        for line in self._lines:
            if not line.startswith("data: "):
                continue
            now = time.monotonic()
            self.longest_pause_s = max(self.longest_pause_s, now - self._last)
            self._last = now
            if line == "data: [DONE]":
                break
            data = json.loads(line[6:])
            if "error" in data:
                self.error = data["error"]
                break
            for choice in data["choices"]:
                self.text += choice["text"]
                self.finish = choice["finish_reason"] or self.finish
            pieces -= 1
            if pieces <= 0:
                return self
        self.close()
        return self

    def close(self):
        self._context.__exit__(None, None, None)
        self._client.close()
