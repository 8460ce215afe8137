"""The servers that `engine_cpu.py` compares, each a process with its children. Measures no latency.

Only one of them runs at a time: the others are stopped (SIGSTOP), so that none can disturb, however
it waits.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.routers import cpu_seconds, family, free_port

KV_MEMORY = "2GiB"
START_LIMIT_S = 240.0
POLL_S = 0.02


@dataclass(slots=True)
class Side:
    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    start_s: float = 0.0  # until /health answered
    is_stopped: bool = False
    peak: dict[int, int] = field(default_factory=dict)  # bytes, by process

    def wait_healthy(self, began: float) -> None:
        while time.monotonic() - began < START_LIMIT_S:
            if self.process.poll() is not None:
                break
            if self._is_healthy():
                self.start_s = time.monotonic() - began
                return
            time.sleep(POLL_S)
        raise SystemExit(f"{self.name} did not start; see {self.log}")

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)
        self.is_stopped = False

    def end(self) -> None:
        if self.is_stopped:
            self.go_on()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def cpu_s(self) -> float:
        return cpu_seconds(self.process.pid)

    def idle_share(self, seconds: float) -> float:
        """Of a core, with nothing to do."""
        before = self.cpu_s()
        time.sleep(seconds)
        return (self.cpu_s() - before) / seconds

    def peak_bytes(self) -> int:
        """Most that was resident, of all its processes together."""
        for pid in family(self.process.pid):
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.peak[pid] = int(line.split()[1]) * 1024
        return sum(self.peak.values())

    def _signal(self, number: signal.Signals) -> None:
        for pid in family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass(slots=True)
class Sides:
    """Everything that was started; `end` ends it."""

    log_directory: Path
    started: list[Side] = field(default_factory=list)

    def ours(self, model: Path, name: str = "xpyd", *flags: str) -> Side:
        port = free_port()
        command = [
            *(sys.executable, "-m", "scripts.cli", "serve", str(model), "--role", "both"),
            *("--port", str(port), "--kv-cache-memory", KV_MEMORY, "--max-model-len", "4096"),
            *("--no-enable-prefix-caching", *flags),
        ]
        return self._start(name, command, port)

    def peer(self, model: Path, name: str, template: str) -> Side:
        """`template`: how it is started, with `{model}` and `{port}` to fill in."""
        port = free_port()
        parts = [part.format(model=model, port=port) for part in shlex.split(template)]
        return self._start(name, parts, port)

    def transformers(self, model: Path) -> Side:
        port = free_port()
        module = "benchmarks.transformers_server"
        command = [sys.executable, "-m", module, str(model), "--port", str(port)]
        return self._start("transformers", command, port)

    def end(self) -> None:
        for side in self.started:
            side.end()

    def _start(self, name: str, command: list[str], port: int) -> Side:
        """Healthy, then stopped until it is its turn."""
        path = self.log_directory / f"{name}.log"
        began = time.monotonic()
        with path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        side = Side(name, f"http://127.0.0.1:{port}", process, path)
        self.started.append(side)
        side.wait_healthy(began)
        side.stop()
        return side
