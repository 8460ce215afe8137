"""`xpyd up`: start a topology, wait until it is healthy, serve until Ctrl-C, stop everything it
started.

What dies while it starts ends the topology; what dies later is started again (`keeper.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from common import cluster_key
from common.api.key_ring import KeyRing, read_keys
from common.config import UpConfig
from common.errors import ConfigError
from common.http_server import refuse_open_bind, tls_of
from scripts import demo
from scripts.faults.links import Links, asker
from scripts.keeper import ChildDied, Keeper
from scripts.supervise import Child, start, stop
from scripts.topology import TopologyPlan, describe, plan_topology, write_topology

POLL_S = 0.1


def run(config: UpConfig, instance_arguments: list[str]) -> int:
    _check_model(config)
    keys = KeyRing(config.api_key, config.api_key_file)
    refuse_open_bind(config.host, has_keys=bool(keys), is_allowed=config.allow_open_http)
    tls_of(config.ssl_certfile, config.ssl_keyfile)  # refused here, not in the proxy's log
    plan = plan_topology(
        config,
        instance_arguments,
        cores=sorted(os.sched_getaffinity(0)),
        gpus=_count_gpus(),
        is_free=_is_free,
        cluster_key=_cluster_key(config),
    )
    return asyncio.run(_Launcher(config, plan).run())


def _cluster_key(config: UpConfig) -> str:
    """The one that was given, else a fresh one for this topology. Raises ConfigError."""
    given = cluster_key.read_text(config.cluster_key_file) if config.cluster_key_file else ""
    text = given or config.cluster_key or cluster_key.generate()
    cluster_key.derive(text)
    return text


class _Launcher:
    def __init__(self, config: UpConfig, plan: TopologyPlan) -> None:
        self._config = config
        self._plan = plan
        self._children: list[Child] = []
        self._file = Path(config.topology_file)
        self._keys = _all_keys(config)
        self._stop = asyncio.Event()
        self._side_channels: dict[int, str] = {}  # by pid
        self._links: Links | None = None
        self._control: Path | None = None  # where these take orders

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        status = 0
        try:
            await self._lay_links()
            await self._start()
            if not self._stop.is_set():
                status = await self._serve()
        except ChildDied as error:
            print(f"xpyd up: {error}", file=sys.stderr)
            status = 1
        finally:
            await self._shut_down()
        return status

    async def _lay_links(self) -> None:
        plan = self._plan.links
        if plan is None:
            return
        urls = {process.name: process.url for process in self._plan.instances}
        registry = plan.registry_port, urlsplit(self._plan.registry).port or 0
        self._links = Links(plan.hosts, registry, asker(urls, self._keys))
        self._control = Path(tempfile.mkdtemp(prefix="xpyd-links-")) / "control"
        await self._links.start(self._control)

    async def _start(self) -> None:
        plan = self._plan
        print(f"starting {plan.model}: {len(plan.instances)} instances and a proxy", flush=True)
        self._children = [start(process) for process in plan.processes]
        began = time.monotonic()
        deadline = began + self._config.timeout_seconds
        waiting = {child.plan.name: child for child in self._children}
        told = began
        async with aiohttp.ClientSession() as session:
            while waiting and not self._stop.is_set():
                self._refuse_dead()
                # The proxy answers 200 only when a pair is ready, so it comes last by itself.
                for name, child in list(waiting.items()):
                    if await _is_healthy(session, child.plan.url):
                        del waiting[name]
                        print(
                            f"  {name:<10} {child.plan.url}  ready after "
                            f"{time.monotonic() - began:.1f} s",
                            flush=True,
                        )
                if time.monotonic() > deadline:
                    raise ChildDied(
                        f"not healthy after {self._config.timeout_seconds:.0f} s: "
                        f"{', '.join(waiting)}; see {waiting[min(waiting)].plan.log}"
                    )
                if waiting and time.monotonic() - told > 5.0:
                    told = time.monotonic()
                    print(
                        f"  … waiting for {', '.join(waiting)} ({told - began:.0f} s)", flush=True
                    )
                await asyncio.sleep(POLL_S)
            if not self._stop.is_set():
                await self._write_topology(session)

    async def _serve(self) -> int:
        if self._config.demo:
            key = self._keys[0] if self._keys else None
            return await demo.run(self._plan.proxy.url, self._plan.model, key)
        print(_greeting(self._plan, bool(self._keys)), flush=True)
        async with aiohttp.ClientSession() as session:
            watching = asyncio.create_task(self._keeper(session).run())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, stopping):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        return 0

    def _keeper(self, session: aiohttp.ClientSession) -> Keeper:
        return Keeper(
            self._children,
            restart=self._config.restart,
            status=lambda url: _status(session, url),
            on_change=lambda: self._write_topology(session),
        )

    def _refuse_dead(self) -> None:
        for child in self._children:
            if line := child.death():
                raise ChildDied(line)

    async def _write_topology(self, session: aiohttp.ClientSession) -> None:
        """As it is now: of an instance that is only starting, the side channel is not known yet."""
        for child in self._children:
            if child.plan.role == "prefill" and child.pid not in self._side_channels:
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
                    info = await _get_json(session, f"{child.plan.url}/instance", self._keys)
                    self._side_channels[child.pid] = info["side_channel"]
        pids = {child.plan.name: child.pid for child in self._children}
        known = [self._side_channels[pid] for pid in pids.values() if pid in self._side_channels]
        control = None if self._control is None else str(self._control)
        write_topology(self._file, describe(self._plan, pids, known, control))

    async def _shut_down(self) -> None:
        if any(child.process.poll() is None for child in self._children):
            print("stopping …", flush=True)
        proxies = [child for child in self._children if child.plan.role == "proxy"]
        instances = [child for child in self._children if child.plan.role != "proxy"]
        await stop(proxies)  # first, so that running streams can still finish
        await stop(instances)
        if self._links is not None:
            await self._links.close()
        if self._control is not None:
            shutil.rmtree(self._control.parent, ignore_errors=True)
        self._file.unlink(missing_ok=True)


def _all_keys(config: UpConfig) -> tuple[str, ...]:
    return (*config.api_key, *(read_keys(config.api_key_file) if config.api_key_file else ()))


def _check_model(config: UpConfig) -> None:
    """Before anything starts: a path that is none is refused in one line."""
    model = config.model
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if model and looks_like_path and not (Path(model).expanduser() / "config.json").is_file():
        raise ConfigError(f"--model {model}: no such model directory (config.json is missing)")


def _greeting(plan: TopologyPlan, needs_key: bool) -> str:
    key = "$XPYD_API_KEY" if needs_key else "none"
    question = '"messages": [{"role": "user", "content": "What is the capital of France?"}]'
    authorization = '  -H "Authorization: Bearer $XPYD_API_KEY" \\\n' if needs_key else ""
    return f"""
ready: {plan.proxy.url}/v1   (model {plan.model}; Ctrl-C stops everything)

  curl {plan.proxy.url}/v1/chat/completions -H 'Content-Type: application/json' \\
{authorization}    -d '{{"model": "{plan.model}", {question}}}'

  from openai import OpenAI
  client = OpenAI(base_url="{plan.proxy.url}/v1", api_key="{key}")
  answer = client.chat.completions.create(model="{plan.model}",
      messages=[{{"role": "user", "content": "Who wrote Hamlet?"}}])
  print(answer.choices[0].message.content)
"""


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    return await _status(session, url) == 200


async def _status(session: aiohttp.ClientSession, url: str) -> int | None:
    try:
        timeout = aiohttp.ClientTimeout(total=2)
        # Our own child, whatever its certificate says: the answer is only a status.
        async with session.get(f"{url}/health", timeout=timeout, ssl=False) as answer:
            return answer.status
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return None


async def _get_json(
    session: aiohttp.ClientSession, url: str, keys: tuple[str, ...]
) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    timeout = aiohttp.ClientTimeout(total=5)
    async with session.get(url, headers=headers, timeout=timeout) as answer:
        found: dict[str, Any] = await answer.json()
        return found


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _count_gpus() -> int:
    """Without importing torch: what the driver shows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
