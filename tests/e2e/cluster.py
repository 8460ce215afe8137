"""Real processes for the end-to-end tests: instances and a proxy on free loopback ports.

    async with cluster("demo", prefill=1, decode=1) as running:
        await running.generate(...)

Everything started is stopped, by pid, whatever happens; logs stay for the failure report.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.faults.site import AT_REST
from scripts.supervise import Child, start, stop
from scripts.topology import ProcessPlan
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
DEMO_MODEL = str(ROOT / "models" / "xpyd-demo")
START_S = 120.0


def skip_without(connector: str) -> None:
    """Skip the test if the connector's package is not here."""
    if connector == "nixl" and not any(map(find_spec, ("nixl_cu13", "nixl_cu12", "nixl"))):
        pytest.skip("the nixl package is not installed")


@dataclass
class Cluster:
    directory: Path
    model: str
    connector: str = "shm"
    arguments: tuple[str, ...] = ()  # to every instance
    registry_port: int = field(default_factory=free_port)
    instances: list[Child] = field(default_factory=list)
    started: list[Child] = field(default_factory=list)  # everything, dead ones too
    proxies: list[Child] = field(default_factory=list)
    session: aiohttp.ClientSession = field(init=False)

    def of(self, role: str) -> list[Child]:
        return [child for child in self.instances if child.plan.role == role]

    @property
    def proxy(self) -> Child:
        """The latest one."""
        return self.proxies[-1]

    @property
    def url(self) -> str:
        return self.proxy.plan.url

    def start_proxy(self, *arguments: str, port: int | None = None) -> Child:
        port = port or free_port()
        made = self._start(
            "proxy",
            "proxy",
            port,
            ["proxy", "--port", str(port), "--registry-port", str(self.registry_port), *arguments],
        )
        self.proxies.append(made)
        return made

    def start_instance(self, role: str, *arguments: str, port: int | None = None) -> Child:
        port = port or free_port()
        name = f"{role}-{len(self.instances)}"
        core = str(sorted(os.sched_getaffinity(0))[len(self.instances) % os.cpu_count()])  # type: ignore[operator]
        argv = [
            *("serve", self.model, "--role", role, "--port", str(port)),
            *("--registry", f"127.0.0.1:{self.registry_port}", "--cpu-cores", core),
            *self._connector(),
            *self.arguments,
            *arguments,
        ]
        child = self._start(name, role, port, argv)
        self.instances.append(child)
        return child

    def _connector(self) -> list[str]:
        storage = str(self.directory / "kv")
        if self.connector != "multi":
            return ["--kv-connector", self.connector, "--kv-storage-dir", storage]
        stored = {"shared_storage_path": storage, "shared_storage_max_bytes": "64MiB"}
        children = [
            {"kv_connector": "shm"},
            {"kv_connector": "shared_storage", "kv_connector_extra_config": stored},
        ]
        extra = {"connectors": children}
        config = {"kv_connector": "multi", "kv_connector_extra_config": extra}
        return ["--kv-transfer-config", json.dumps(config)]

    def _start(self, name: str, role: str, port: int, arguments: list[str]) -> Child:
        argv = [sys.executable, "-m", "scripts.cli", *arguments]
        log = self.directory / f"{name}-{port}.log"
        url = f"http://127.0.0.1:{port}"
        child = start(ProcessPlan(name, role, url, argv, {"HF_HUB_OFFLINE": "1"}, log))  # type: ignore[arg-type]
        self.started.append(child)
        return child

    async def healthy(self, *children: Child, timeout_s: float = START_S) -> None:
        """Wait until each answers 200; default: all."""
        everybody = [*self.instances, *self.proxies[-1:]]
        deadline = time.monotonic() + timeout_s
        for child in children or everybody:
            while await self.status(f"{child.plan.url}/health") != 200:
                assert child.death() is None, f"{child.death()}\n{self.logs()}"
                assert time.monotonic() < deadline, f"{child.plan.name} unhealthy\n{self.logs()}"
                await asyncio.sleep(0.1)

    async def ready_instances(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until the proxy can use that many instances."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = (await self.get(f"{self.url}/instances"))["instances"]
            if sum(row["state"] == "ready" for row in rows) == count:
                return
            assert time.monotonic() < deadline, f"{rows}\n{self.logs()}"
            await asyncio.sleep(0.1)

    async def status(self, url: str) -> int | None:
        try:
            async with self.session.get(url) as answer:
                return answer.status
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return None

    async def get(self, url: str) -> Any:
        async with self.session.get(url) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def generate(self, url: str, token_ids: list[int], **sampling: Any) -> list[int]:
        """Token ids in, token ids out, not streamed."""
        body = {"token_ids": token_ids, "sampling_params": sampling}
        async with self.session.post(f"{url}/inference/v1/generate", json=body) as answer:
            assert answer.status == 200, await answer.text()
            tokens: list[int] = (await answer.json())["choices"][0]["token_ids"]
            return tokens

    async def stream(self, url: str, token_ids: list[int], **sampling: Any) -> AsyncIterator[Any]:
        """The decoded `data:` events of a streamed generation, `[DONE]` left out."""
        body = {"token_ids": token_ids, "sampling_params": sampling, "stream": True}
        async with self.session.post(f"{url}/inference/v1/generate", json=body) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    async def metrics(self, child: Child) -> dict[str, float]:
        """Gauges and counters by name, without prefix; labelled rows of one name are added up."""
        async with self.session.get(f"{child.plan.url}/metrics") as answer:
            text = await answer.text()
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                key = name.partition("{")[0].partition(":")[2]
                found[key] = found.get(key, 0.0) + float(value)
        return found

    async def at_rest(self, *children: Child, timeout_s: float = 30.0) -> float:
        """Ledger and gauges say that nothing is taken, on every instance named (default: all).

        Returns the seconds until that was so.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        for child in children or self.instances:
            while wrong := await self._not_at_rest(child):
                assert time.monotonic() < deadline, f"{child.plan.name}: {wrong}\n{self.logs()}"
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def _not_at_rest(self, child: Child) -> dict[str, Any]:
        metrics = await self.metrics(child)
        taken = {name: metrics[name] for name in AT_REST if metrics[name] != 0}
        blocks = (await self.get(f"{child.plan.url}/debug/kv"))["blocks"]
        if blocks["free"] + blocks["cached"] != blocks["total"]:
            taken["ledger"] = blocks
        return taken

    def logs(self) -> str:
        parts = []
        for path in sorted(self.directory.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-25:]
            parts.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(parts)


@contextlib.asynccontextmanager
async def cluster(
    directory: Path,
    *,
    prefill: int = 0,
    decode: int = 0,
    both: int = 0,
    proxy: bool = True,
    model: str = DEMO_MODEL,
    connector: str = "shm",
    arguments: tuple[str, ...] = (),
) -> AsyncIterator[Cluster]:
    """A healthy topology; stopped at the end."""
    made = Cluster(directory, model, connector, arguments)
    timeout = aiohttp.ClientTimeout(total=120)
    made.session = aiohttp.ClientSession(timeout=timeout)
    try:
        if proxy:
            made.start_proxy()
        for role, count in (("prefill", prefill), ("decode", decode), ("both", both)):
            for _ in range(count):
                made.start_instance(role)
        await made.healthy()
        if proxy:
            await made.ready_instances(len(made.instances))
        yield made
    finally:
        await made.session.close()
        await stop(made.started, deadline_s=10.0)
