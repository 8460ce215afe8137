"""`xpyd up` as users and scripts meet it: files, signals, errors, nothing left running."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def up(tmp_path):
    """Start `xpyd up` in an empty directory; whatever it is, it ends with the test."""
    started = []

    def run(*arguments, env=None):
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", "up", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        if process.stdout:
            process.stdout.close()


def until_ready(process, timeout_s=120):
    """The lines up to the snippet; fails if the launcher ends first."""
    lines = []
    deadline = time.monotonic() + timeout_s
    for line in process.stdout:
        lines.append(line)
        if "print(answer" in line:
            return "".join(lines)
        assert time.monotonic() < deadline, "".join(lines)
    raise AssertionError("".join(lines))


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids_in(topology):
    rows = [topology["proxy"], *topology["prefill"], *topology["decode"]]
    return [row["pid"] for row in rows]


def test_ctrl_c_stops_everything_it_started(up, tmp_path):
    process = up("--port", str(free_port()))
    said = until_ready(process)
    topology = json.loads((tmp_path / "run" / "topology.json").read_text())
    assert topology["model"] == "xpyd-demo"
    assert len(topology["prefill"]) == len(topology["decode"]) == 1
    assert topology["side_channels"][0].startswith("tcp://")
    pids = pids_in(topology)
    assert all(is_running(pid) for pid in pids)
    url = topology["proxy"]["url"]
    assert f"{url}/v1" in said
    assert "curl" in said
    with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not any(is_running(pid) for pid in pids)
    assert not (tmp_path / "run" / "topology.json").exists()


def test_the_demo_answers_and_ends(up):
    process = up("--demo", "--port", str(free_port()))
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "Paris" in said
    assert "Shakespeare" in said
    assert "Tokyo" in said
    assert re.search(r"TTFT: [0-9.]+ ms\n(.*\n)*? +prefill +[0-9.]+ ms", said), said


def test_the_second_start_takes_less_than_fifteen_seconds(up):
    process = up("--port", str(free_port()))
    said = until_ready(process)
    seconds = [float(found) for found in re.findall(r"ready after ([0-9.]+) s", said)]
    assert len(seconds) == 3
    assert max(seconds) < 15, said  # two and a half on two idle cores


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--model", "/no/such/model"], 2, "no such model directory"),
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--prefill", "-1"], 2, "must not be negative"),
        (["--port", "99999"], 2, "--port"),
        (["--connector", "carrier-pigeon"], 1, "carrier-pigeon"),
        (["--", "--block-size", "0"], 1, "--block-size"),
        (["--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_mistakes_end_in_one_clear_line(up, arguments, status, line, tmp_path):
    port = [] if "--port" in arguments else ["--port", str(free_port())]
    process = up(*port, *arguments, env={"HF_HUB_OFFLINE": "1"})
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said
    assert line in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "topology.json").exists()


def test_a_port_in_use_is_named(up):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = up("--port", str(port))
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"port {port} is in use" in said


def test_a_role_that_died_ends_the_topology(up, tmp_path):
    process = up("--port", str(free_port()), "--no-restart")
    until_ready(process)
    topology = json.loads((tmp_path / "run" / "topology.json").read_text())
    victim = topology["decode"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert f"decode-0 (pid {victim}) was killed by SIGKILL" in said
    assert not any(is_running(pid) for pid in pids_in(topology))


def test_children_go_when_the_launcher_is_killed(up, tmp_path):
    process = up("--port", str(free_port()))
    until_ready(process)
    pids = pids_in(json.loads((tmp_path / "run" / "topology.json").read_text()))
    process.kill()
    deadline = time.monotonic() + 120
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.2)
