"""The servers that a hand-over benchmark compares, as processes pinned to cores. Measures nothing.

A side is a proxy and its instances: every side is asked through the same front end.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.routers import free_port

KV_MEMORY = "256MiB"


@dataclass(frozen=True, slots=True)
class Side:
    name: str
    url: str  # of its proxy
    instances: tuple[str, ...]  # their own HTTP sides


@dataclass(slots=True)
class Servers:
    """Everything that was started; `stop` ends it."""

    log_directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def side(
        self,
        name: str,
        model: Path,
        roles: Sequence[tuple[str, str]],
        *arguments: str,
        proxy_arguments: Sequence[str] = (),
    ) -> Side:
        """`roles`: (role, cores) of each instance; `arguments`: to all of them."""
        places = [(role, cores, free_port()) for role, cores in roles]
        for role, cores, port in places:
            flags = [
                *("--role", role, "--port", str(port), "--cpu-cores", cores),
                *("--load-format", "dummy", "--kv-cache-memory", KV_MEMORY),
            ]
            self._start(f"{name}-{role}", "serve", str(model), *flags, *arguments)
        known = [(role, f"127.0.0.1:{port}") for role, _, port in places]
        return self.front(name, known, *proxy_arguments)

    def front(self, name: str, known: Sequence[tuple[str, str]], *arguments: str) -> Side:
        """A proxy before instances that are there, or about to be: (role, host:port) of each."""
        port = free_port()
        flags = ["--port", str(port), "--registry-port", str(free_port())]
        flags += [f"--{'prefill' if role == 'prefill' else 'decode'}={at}" for role, at in known]
        self._start(f"{name}-proxy", "proxy", *flags, *arguments)
        return Side(name, f"http://127.0.0.1:{port}", tuple(f"http://{at}" for _, at in known))

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def check(self) -> None:
        """Raises SystemExit if one has died."""
        for process in self.processes:
            if process.poll() is not None:
                raise SystemExit(f"a server ended early; see the logs in {self.log_directory}")

    def _start(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "scripts.cli", *arguments]
        with (self.log_directory / f"{name}.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
