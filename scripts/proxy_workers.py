"""`xpyd proxy --workers N`: the parent of N proxy processes at one port.

    parent   owns the registry and the port's number, starts the workers again when they die
    worker   a whole proxy: its own HTTP socket at the shared port (SO_REUSEPORT), its own links to
             all instances; it follows the parent's registry

The parent carries no request, so there is little that could end it; if it ends, its workers do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from common.addresses import tcp_endpoint
from common.admission.ledger import Ledger
from common.errors import ConfigError
from common.http_server import bind, url_of
from proxy.registry import Registry
from proxy.server import ProxySettings
from proxy.siblings import Place, ledger_in
from scripts.proxy_command import describe_worker
from scripts.restarts import Restarts
from scripts.supervise import spawn

log = logging.getLogger(__name__)

POLL_S = 0.2
STOP_MARGIN_S = 5.0  # on top of a worker's own drain
WRONG_SETTINGS = 2  # the exit status for which starting again is no use


@dataclass(slots=True)
class _Worker:
    number: int
    name: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    is_reported: bool = False


def run_workers(settings: ProxySettings, count: int, arguments: list[str]) -> int:
    """`arguments`: of the command line, which the workers are given as well."""
    return asyncio.run(_Parent(settings, count, arguments).run())


class _Parent:
    def __init__(self, settings: ProxySettings, count: int, arguments: list[str]) -> None:
        self._settings = settings
        self._count = count
        self._argv = [sys.executable, "-m", "scripts.cli", *arguments]
        self._workers: list[_Worker] = []
        self._restarts = Restarts()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        settings = self._settings
        try:
            reserved = _reserve(settings.host, settings.port)
        except ConfigError as error:
            return _cannot_start(error.message)
        try:
            endpoint = tcp_endpoint(settings.registry_host, settings.registry_port or 0)
            registry = Registry(endpoint, key=settings.cluster_key)
        except zmq.ZMQError as error:
            reserved.close()
            reason = os.strerror(error.errno or 0)
            return _cannot_start(
                f"cannot listen on registry port {settings.registry_port}: {reason}"
            )
        log.info("proxy at %s, %d workers", url_of(reserved, settings.tls), self._count)
        log.info("registry at %s", registry.endpoint)
        self._take_signals()
        try:
            with tempfile.TemporaryDirectory(prefix="xpyd-proxy-") as directory:
                ledger = Ledger(ledger_in(Path(directory)), 0, self._count)
                self._start(Path(directory), reserved.getsockname()[1], registry.endpoint)
                try:
                    return await self._watch(ledger)
                finally:
                    await self._end()
                    ledger.close()
        finally:
            await registry.close()
            reserved.close()

    def _start(self, directory: Path, port: int, registry: str) -> None:
        followed = registry.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
        for number in range(self._count):
            place = Place(number, self._count, directory)
            environment = {"XPYD_PROXY_WORKER": describe_worker(place, port, followed)}
            process = spawn(self._argv, environment)
            self._workers.append(_Worker(number, f"worker {number}", environment, process))

    async def _watch(self, ledger: Ledger) -> int:
        """Until a signal (0), or until no worker is left that could be started again (1)."""
        while not self._stop.is_set():
            now = time.monotonic()
            for worker in self._workers:
                status = worker.process.poll()
                if status is None:
                    continue
                if status == WRONG_SETTINGS:
                    return WRONG_SETTINGS  # it has said why
                self._look(worker, status, now, ledger)
            if all(self._restarts.is_hopeless(worker.name) for worker in self._workers):
                return _cannot_start("all workers die again and again; see the log above")
            try:
                await asyncio.wait_for(self._stop.wait(), POLL_S)
            except asyncio.TimeoutError:
                continue
        return 0

    def _look(self, worker: _Worker, status: int, now: float, ledger: Ledger) -> None:
        """At one that has ended: say so once, start it again when it is time."""
        if not worker.is_reported:
            worker.is_reported = True
            ledger.clear(worker.number)
            lived_s = now - worker.started_at
            delay_s = self._restarts.ended(worker.name, is_clean=False, lived_s=lived_s, now=now)
            then = "is left alone" if delay_s is None else f"starts again in {delay_s:.0f} s"
            pid = worker.process.pid
            log.warning("%s (pid %d) ended with status %d and %s", worker.name, pid, status, then)
        if self._restarts.is_due(worker.name, now):
            self._restarts.started(worker.name)
            worker.process = spawn(self._argv, worker.environment)
            worker.started_at, worker.is_reported = now, False
            log.info("%s runs as pid %d", worker.name, worker.process.pid)

    async def _end(self) -> None:
        """SIGTERM: they refuse what is new and finish what runs; then SIGKILL."""
        self._tell(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_s + STOP_MARGIN_S
        while any(worker.process.poll() is None for worker in self._workers):
            if time.monotonic() > deadline:
                self._tell(signal.SIGKILL)
                break
            await asyncio.sleep(POLL_S / 4)
        for worker in self._workers:
            worker.process.wait()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._stop.is_set():  # the second time: no more patience
                self._tell(signal.SIGTERM)
            self._stop.set()

        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_signal_handler(signal.SIGINT, stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port's number and takes no connection. Raises ConfigError if anybody
    listens there, even if they would share."""
    probe = bind(host, port, listen=False)
    number = probe.getsockname()[1]
    probe.close()
    return bind(host, number, is_shared=True, listen=False)


def _cannot_start(reason: str) -> int:
    print(f"xpyd proxy: {reason}", file=sys.stderr)
    return 1
