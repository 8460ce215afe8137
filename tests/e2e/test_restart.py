"""`xpyd up` brings back what ends, and restarts a whole fleet under load: no request fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
LIMITS = ("--max-model-len", "512", "--kv-cache-memory", "32MiB", "--max-num-batched-tokens", "64")


class Launched:
    def __init__(self, directory, *arguments, limits=LIMITS):
        self.directory = directory
        self.said = directory / "said.txt"
        self._out = open(self.said, "w")  # noqa: SIM115 (closed in `end`)
        self.process = self._start("up", "--port", str(free_port()), *arguments, "--", *limits)

    def _start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", *arguments],
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def command(self, *arguments, timeout_s=300):
        """Run another `xpyd` command beside it; its exit status."""
        process = self._start(*arguments)
        try:
            return process.wait(timeout_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def topology(self):
        return json.loads((self.directory / "run" / "topology.json").read_text())

    def until(self, condition, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if condition():
                    return
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.1)

    def ready(self, count):
        url = self.topology()["proxy"]["url"]
        with urllib.request.urlopen(f"{url}/instances", timeout=5) as answer:
            rows = json.load(answer)["instances"]
        return [row["state"] for row in rows].count("ready") == count

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self._out.close()


@pytest.fixture
def launch(tmp_path):
    running = []

    def up(*arguments, limits=LIMITS):
        made = Launched(tmp_path, *arguments, limits=limits)
        running.append(made)
        return made

    yield up
    for each in running:
        each.end()


def ask(url, max_tokens=24):
    """(status, text): one greedy completion, streamed to its end."""
    body = {"prompt": "The capital of Japan is", "max_tokens": max_tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps({**body, "stream": True, "ignore_eos": True}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            events = [
                json.loads(line[6:])
                for line in answer.read().splitlines()
                if line[:7] == b"data: {"
            ]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    if any("error" in event for event in events):
        return 500, json.dumps(events[-1])
    return 200, "".join(event["choices"][0]["text"] for event in events)


def test_an_instance_that_was_killed_comes_back(launch):
    made = launch()
    made.until(lambda: made.ready(2))
    before = made.topology()
    url = before["proxy"]["url"]
    expected = ask(url)
    assert expected[0] == 200
    victim = before["decode"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    made.until(lambda: made.topology()["decode"][0]["pid"] != victim)
    made.until(lambda: made.ready(2))
    made.until(lambda: "is ready again" in made.said.read_text())
    now = made.topology()
    os.kill(now["decode"][0]["pid"], 0)
    assert now["prefill"][0]["pid"] == before["prefill"][0]["pid"]
    assert ask(url) == expected
    said = made.said.read_text()
    assert f"decode-0 (pid {victim}) was killed by SIGKILL" in said
    assert "starting it again in 1 s" in said
    assert Path(now["decode"][0]["log"]).read_text().count("ready in") == 2, "both lives are there"


def test_a_rolling_restart_under_load_fails_no_request(launch):
    made = launch("--prefill", "2", "--decode", "2")
    made.until(lambda: made.ready(4))
    before = made.topology()
    url = before["proxy"]["url"]
    expected = ask(url, 48)
    assert expected[0] == 200
    answers, is_over = [], threading.Event()

    def load():
        while not is_over.is_set():
            answers.append(ask(url, 48))

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        status = made.command("rolling-restart")
    finally:
        is_over.set()
        for client in clients:
            client.join()
    assert status == 0, made.said.read_text()
    wrong = [answer for answer in answers if answer != expected]
    assert not wrong, f"{len(wrong)} of {len(answers)}: {wrong[:3]}\n{made.said.read_text()}"
    assert len(answers) > 4
    now = made.topology()
    for role in ("prefill", "decode"):
        for row, old in zip(now[role], before[role], strict=True):
            assert row["pid"] != old["pid"]
            assert row["url"] == old["url"]
    assert now["proxy"]["pid"] == before["proxy"]["pid"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.0/8")
def test_chaos_cuts_a_link_and_nobody_is_told_wrong(launch):
    made = launch("--decode", "2", "--breakable-links", limits=("--max-num-batched-tokens", "64"))
    made.until(lambda: made.ready(3))
    url = made.topology()["proxy"]["url"]
    status = made.command(
        *(
            "chaos",
            "--url",
            url,
            "--topology",
            "run/topology.json",
            "--result-file",
            "verdict.json",
        ),
        *("--faults", "cut", "--duration-s", "0.1", "--streams", "4", "--tokens", "150"),
        *("--gap-factor", "20"),
    )
    assert status == 0, made.said.read_text()
    verdict = json.loads((made.directory / "verdict.json").read_text())
    assert (verdict["verdict"], verdict["failed"], verdict["altered"]) == ("pass", 0, 0)
    (row,) = verdict["rounds"]
    assert (row["fault"], row["streams"]) == ("cut", 8)
    assert row["victim"] in ("decode-0", "decode-1"), "not the only prefill instance"
