"""A real 1P1D topology and a real `--role both` of the bundled model, for all client packages.

Both are started once, and every test runs against each. Client packages are slow to import, warn,
and want versions of each other's that do not go together, so their programs run in a process of
their own, once for both. XPYD_CLIENTS_PYTHON names the interpreter of an environment that has them;
default: the tests' own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.clients.checked_http import CheckedTransport
from tests.e2e.cluster import Cluster, cluster

KEY = "correct-horse"
MODEL = "xpyd-demo"
KINDS = ("pair", "both")
PYTHON = os.environ.get("XPYD_CLIENTS_PYTHON", sys.executable)

Run = Callable[[str, str], dict[str, Any]]

_HEAD = f"""
import json, os, sys
KEY, MODEL = {KEY!r}, {MODEL!r}
everything = {{}}
for kind, URL in json.loads(os.environ["XPYD_URLS"]).items():
    results = everything[kind] = {{}}
    exec(sys.argv[1], {{**globals(), "URL": URL, "results": results}})
print("RESULTS", json.dumps(everything))
"""


@dataclass(frozen=True, slots=True)
class Site:
    """One topology, as its users and as its keepers see it."""

    url: str  # without /v1
    running: Cluster
    loop: asyncio.AbstractEventLoop

    def at_rest(self) -> None:
        """Wait until nothing is taken on any instance."""
        asyncio.run_coroutine_threadsafe(self.running.at_rest(), self.loop).result(60)


@pytest.fixture(scope="session")
def sites(tmp_path_factory):
    """By kind. They live in a thread's event loop until the session ends."""
    started, stop = threading.Event(), threading.Event()
    found: dict[str, Site] = {}

    async def body():
        directory, loop = tmp_path_factory.mktemp("clients"), asyncio.get_running_loop()
        header = {"Authorization": f"Bearer {KEY}"}
        (directory / "both").mkdir()
        async with (
            cluster(directory, prefill=1, decode=1, proxy=False) as pair,
            cluster(directory / "both", proxy=False) as alone,
        ):
            proxy = pair.start_proxy("--api-key", KEY)
            both = alone.start_instance("both", "--api-key", KEY)
            alone.session.headers.update(header)
            await pair.healthy()
            await alone.healthy()
            found["pair"] = Site(proxy.plan.url, pair, loop)
            found["both"] = Site(both.plan.url, alone, loop)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(body(),))
    thread.start()
    try:
        assert started.wait(150), "the topologies did not start"
        yield found
    finally:
        stop.set()
        thread.join(30)


@pytest.fixture(scope="session", params=KINDS)
def site(request, sites) -> Site:
    found: Site = sites[request.param]
    return found


@pytest.fixture(scope="session")
def url(site) -> str:
    return str(site.url)


@pytest.fixture
def http():
    """For OpenAI's `http_client`: every answer is held to the SDK's types."""
    with httpx.Client(transport=CheckedTransport(), timeout=120) as made:
        yield made


@pytest.fixture(scope="session")
def run_program(sites) -> Run:
    """`run_program(package, text)`: what a user's program has put into `results`, by kind."""

    def run(package: str, program: str) -> dict[str, Any]:
        _need(package)
        urls = {kind: site.url for kind, site in sites.items()}
        done = subprocess.run(
            [PYTHON, "-W", "ignore", "-c", _HEAD, program],
            env={
                **os.environ,
                "XPYD_URLS": json.dumps(urls),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
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
