"""A stand-in server as a process of its own, so that it does not share the client's event loop."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
StartStandIn = Callable[..., str]


@pytest.fixture
def start_stand_in() -> Iterator[StartStandIn]:
    """`start("--ttft-ms", 5, …)` starts a server and returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(*options: object) -> str:
            command = [sys.executable, "-m", "benchmarks.standin_server", *map(str, options)]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            stack.callback(_stop, process)
            assert process.stdout is not None
            return process.stdout.readline().removeprefix("listening on ").strip()

        yield start


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=10)
