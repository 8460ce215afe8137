"""Routers as processes, each over stand-ins that do no compute: for `benchmarks/proxy.py`.

Ours runs over token engines (`standin_instance.py`): it reads text into tokens and tokens into
text, hands over from P to D and keeps each stream's tokens. A peer, and the client alone, run over
a server that already speaks OpenAI (`standin_server.py`), so a peer only passes bytes on.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[1] / "models" / "xpyd-demo"


@dataclass(frozen=True, slots=True)
class Router:
    name: str
    url: str
    model: str
    pid: int  # of the process whose cost is measured


class Processes:
    """Started here, ended here."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, reads: bool = False) -> subprocess.Popen[str]:
        """`reads`: its standard output is wanted, else it goes to the log."""
        with self._log.open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE if reads else log, stderr=log, text=True
            )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def floor(processes: Processes, step_s: float) -> Router:
    """No router at all: the client beside the server that the peers stand before."""
    process, url = _openai_standin(processes, step_s)
    return Router("direct", url, "stand-in", process.pid)


def bare(processes: Processes, step_s: float) -> Router:
    """Our HTTP server around an app that only answers; it has no pace."""
    process = processes.start(sys.executable, "-m", "benchmarks.bare_asgi", reads=True)
    return Router("bare", _first_line(process), "stand-in", process.pid)


def ours(processes: Processes, step_s: float) -> Router:
    addresses = [_token_standin(processes, role, step_s) for role in ("prefill", "decode")]
    port = free_port()
    process = processes.start(
        *(sys.executable, "-m", "scripts.cli", "proxy", "--port", str(port)),
        *("--registry-port", "0", "--max-queue", "4096"),
        *("--prefill", addresses[0], "--decode", addresses[1]),
    )
    return Router("xpyd", f"http://127.0.0.1:{port}", "demo", process.pid)


def peer(name: str, command: str) -> Callable[[Processes, float], Router]:
    """`command`: how it is started, with `{backend}`, `{port}` and, for whatever else it opens,
    `{spare_port}` to fill in."""

    def start(processes: Processes, step_s: float) -> Router:
        _, backend = _openai_standin(processes, step_s)
        port = free_port()
        filled = [
            part.format(backend=backend, port=port, spare_port=free_port())
            for part in shlex.split(command)
        ]
        process = processes.start(*filled)
        return Router(name, f"http://127.0.0.1:{port}", "stand-in", process.pid)

    return start


def cpu_seconds(pid: int) -> float:
    """User and system time so far, of a process and those it has started."""
    found = 0.0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def resident_bytes(pid: int) -> int:
    """Of a process and those it has started."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """The process and those it has started."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _openai_standin(processes: Processes, step_s: float) -> tuple[subprocess.Popen[str], str]:
    options = ["--ttft-ms", "0", "--itl-ms", str(step_s * 1e3)]
    process = processes.start(
        sys.executable, "-m", "benchmarks.standin_server", *options, reads=True
    )
    return process, _first_line(process).rpartition(" ")[2]


def _token_standin(processes: Processes, role: str, step_s: float) -> str:
    """Its host:port."""
    # Tokens that are words: each becomes an event of its own, none waits for half a character.
    options = ["--role", role, "--step-s", str(step_s), "--first-id", "1000"]
    process = processes.start(
        *(sys.executable, "-m", "benchmarks.standin_instance", *options),
        *("--model", "demo", "--model-path", str(MODEL)),
        reads=True,
    )
    return _first_line(process)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise SystemExit("a stand-in did not start; see the log")
    return line
