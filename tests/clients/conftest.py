"""One real 1P1D topology of the bundled model for all client packages, and their programs.

Client packages are slow to import, warn, and want versions of each other's that do not go together,
so their programs run in a process of their own. XPYD_CLIENTS_PYTHON names the interpreter of an
environment that has them; default: the tests' own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.cluster import cluster

KEY = "correct-horse"
MODEL = "xpyd-demo"
PYTHON = os.environ.get("XPYD_CLIENTS_PYTHON", sys.executable)

Run = Callable[[str, str], dict[str, Any]]

_HEAD = f"""
import json, os, sys
URL, KEY, MODEL = os.environ["XPYD_URL"], {KEY!r}, {MODEL!r}
results = {{}}
"""
_TAIL = """
print("RESULTS", json.dumps(results))
"""


@pytest.fixture(scope="session")
def url(tmp_path_factory):
    """Base URL, without /v1. The topology lives in a thread's event loop until the session ends."""
    started, stop = threading.Event(), threading.Event()
    found = []

    async def body():
        directory = tmp_path_factory.mktemp("clients")
        async with cluster(directory, prefill=1, decode=1, proxy=False) as made:
            made.start_proxy("--api-key", KEY)
            await made.healthy(made.proxy)
            found.append(made.url)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(body(),))
    thread.start()
    try:
        assert started.wait(150), "the topology did not start"
        yield found[0]
    finally:
        stop.set()
        thread.join(30)


@pytest.fixture(scope="session")
def run_program(url) -> Run:
    """`run_program(package, text)`: what a user's program has put into `results`."""

    def run(package: str, program: str) -> dict[str, Any]:
        _need(package)
        done = subprocess.run(
            [PYTHON, "-W", "ignore", "-c", _HEAD + program + _TAIL],
            env={**os.environ, "XPYD_URL": url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        last = done.stdout.rpartition("RESULTS ")[2]
        results: dict[str, Any] = json.loads(last)
        return results

    return run


def _need(package: str) -> None:
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    if subprocess.run([PYTHON, "-c", look], timeout=60).returncode:
        pytest.skip(f"the {package} package is not installed; see XPYD_CLIENTS_PYTHON")
