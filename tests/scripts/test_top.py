"""`xpyd top`: lines of text from what a proxy says, and a terminal that is given back."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from scripts.top.view import view

ROOT = Path(__file__).parents[2]
NONE = {"count": 0, "p50": None, "p90": None, "p99": None}
SOME = {"count": 12, "p50": 0.0123, "p90": 0.2, "p99": 1.5}


def instance(name, role="decode", state="ready", **load):
    known = {"num_running": 1, "num_waiting": 0, "num_waiting_tokens": 0}
    blocks = {"free_blocks": 50, "total_blocks": 100}
    return {
        "id": name,
        "role": role,
        "state": state,
        "requests": 1,
        "load": {**known, **blocks, **load},
    }


def status(*instances, **changes):
    return {
        "model": "demo",
        "topology": "1P1D",
        "is_ready": True,
        "is_draining": False,
        "requests_in_flight": 3,
        "requests_waiting": 0,
        "requests_queued": 0,
        "counts": {"finished": 5, "migrations": 2, "failed": 1},
        "instances": list(instances),
        "recent": {
            "requests_per_s": 1.5,
            "prompt_tokens_per_s": 20.0,
            "generation_tokens_per_s": 812.0,
            "ttft": SOME,
            "itl": SOME,
            "stages": {"prefill": SOME, "handover": SOME},
        },
        "links": [],
        "failures": [],
        "now": 1_700_000_000.0,
        "uptime_s": 300.0,
        **changes,
    }


def test_what_matters_is_there():
    failure = {"at": 1_700_000_000.0, "what": "instance lost", "instance": "d0"}
    failure |= {"request_id": "", "message": "its connection broke", "count": 3}
    shown = "\n".join(
        view(status(instance("d0", state="draining"), failures=[failure]), 120, 50, False)
    )
    for text in ("1P1D", "ready", "812 tokens/s", "12.30 ms", "1.50 s", "draining", "50%"):
        assert text in shown
    assert "instance lost ×3" in shown and "its connection broke" in shown
    assert "\x1b" not in shown


def test_a_controllers_suggestion_is_shown():
    advice = {"mode": "suggest", "suggests": "2P1D", "reason": "prefill is late", "flip": None}
    shown = "\n".join(view(status(controller=advice), 120, 50, False))
    assert "controller (suggest): 2P1D, prefill is late" in shown
    assert "controller" not in "\n".join(view(status(controller=None), 120, 50, False))


@pytest.mark.parametrize("is_colored", [False, True])
@pytest.mark.parametrize(("width", "height"), [(20, 4), (80, 24), (200, 60)])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_it_fits_the_terminal(count, width, height, is_colored):
    lines = view(status(*(instance(f"d{n}") for n in range(count))), width, height, is_colored)
    assert len(lines) <= height
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= width
    if (count, height) == (40, 24):
        assert "more; --once shows all" in plain[-1]


def test_names_cannot_steer_the_terminal():
    evil = instance("\x1b[2Jx\r\n\x9b31m\u202e", role="\x07", state="\x1b]0;t\x07")
    failure = {
        "at": 0.0,
        "what": "\x1b[1m",
        "instance": "\n",
        "request_id": "\t",
        "message": "\x00",
    }
    found = view(status(evil, model="\x1b[H", failures=[failure | {"count": 1}]), 200, 50, False)
    assert all(line.isprintable() for line in found)


def test_workers_that_do_not_answer_are_seen():
    workers = {"count": 3, "answered": [{"number": 0}, {"number": 2}]}
    assert "2 of 3 workers" in view(status(workers=workers), 120, 50, False)[0]
    assert "workers" not in view(status(workers=None), 120, 50, False)[0]


# --- the command ---------------------------------------------------------------------------------


@contextlib.contextmanager
def server(answer, code=200):
    """Answers /status, with `answer` as it is now."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_address[1]}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def command(url, *options):
    return [sys.executable, "-m", "scripts.cli", "top", "--url", url, *options]


def run(url, *options):
    environment = {**os.environ, "XPYD_API_KEY": ""}
    return subprocess.run(
        command(url, *options),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_once_and_json_are_for_scripts():
    with server(status(*(instance(f"d{n}") for n in range(40)))) as url:
        once = run(url, "--once")
        assert once.returncode == 0 and "\x1b" not in once.stdout
        assert "d39" in once.stdout
        assert json.loads(run(url, "--json").stdout)["topology"] == "1P1D"
        assert "d39" in run(url).stdout  # no terminal: once


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        ({}, 401, "needs an API key"),
        ({}, 404, "ask the proxy"),
        ({}, 500, "answers 500"),
        ({"other": 1}, 200, "no xpyd proxy"),
        (b"<html>", 200, "no xpyd proxy"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(answer, code, message):
    with server(answer, code) as url:
        found = run(url, "--once")
    assert found.returncode == 1 and found.stdout == ""
    assert message in found.stderr and found.stderr.count("\n") == 1


def test_a_proxy_that_is_not_there_is_said_in_one_line():
    found = run("http://127.0.0.1:9", "--once")
    assert found.returncode == 1
    assert "no proxy answers" in found.stderr and "Traceback" not in found.stderr


def test_it_redraws_after_a_resize_and_gives_the_terminal_back():
    with server(status(*(instance(f"d{n}") for n in range(40)))) as url:
        main, side = pty.openpty()
        resize(main, 30, 100)
        before = termios.tcgetattr(side)
        process = subprocess.Popen(
            command(url, "--interval", "3600"), cwd=ROOT, stdin=side, stdout=side, stderr=side
        )
        try:
            read_until(main, b"more; --once")
            resize(main, 60, 100)
            process.send_signal(signal.SIGWINCH)
            read_until(main, b"d39")  # there is room for it now
            process.send_signal(signal.SIGINT)
            last = read_until(main, b"\x1b[?1049l")
            assert b"Traceback" not in last
            assert process.wait(30) == 0
            assert termios.tcgetattr(side) == before
        finally:
            process.kill()
            process.wait()
            os.close(main)
            os.close(side)


def resize(terminal, lines, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def read_until(terminal, wanted, timeout_s=60.0):
    os.set_blocking(terminal, False)
    got, deadline = b"", time.monotonic() + timeout_s
    while wanted not in got:
        assert time.monotonic() < deadline, got
        with contextlib.suppress(BlockingIOError):
            got += os.read(terminal, 65536)
        time.sleep(0.01)
    return got
