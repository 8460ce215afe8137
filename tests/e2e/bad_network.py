"""A 2P2D fleet of real processes in which every wire between them passes a relay of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from scripts.faults.relay import Relay
from scripts.faults.stream import Answer, play
from scripts.faults.workload import Job, jobs, stopping
from scripts.supervise import Child, stop
from tests.e2e.cluster import Cluster
from tests.ports import free_port

MODEL = "xpyd-demo"
NUM_TOKENS = 250  # of each answer: enough for it to be running when something breaks
END_S = 120.0  # every wait ends by then, however busy the machine


class Fleet:
    """A `Cluster` behind relays, the jobs it is given, and what they must be answered."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.registry_relay = Relay("127.0.0.1", free_port(), ("127.0.0.1", cluster.registry_port))
        self.relays: dict[int, list[Relay]] = {}  # by pid of the instance behind them
        self.jobs: list[Job] = []
        self.expected: dict[str, Answer] = {}
        self.longest_gap_s = 0.0  # between two pieces of a stream, since somebody set it to 0
        self.longest_first_s = 0.0  # from asking to the first piece

    # --- processes -----------------------------------------------------------------------------

    def launch(self, role: str, host: str, port: int | None = None) -> Child:
        """An instance that others reach at `host`, which is a relay's."""
        registry = ("--registry", f"127.0.0.1:{self.registry_relay.port}")
        return self.cluster.start_instance(
            role,
            *registry,
            *("--advertise-host", host, "--max-num-batched-tokens", "128", "--kv-lease-s", "4"),
            port=port,
        )

    async def wire(self, child: Child, host: str) -> None:
        """Set up its relays as soon as it says which ports it has."""
        await self.cluster.healthy(child)
        info = await self.cluster.get(f"{child.plan.url}/instance")
        made = []
        for endpoint in filter(None, (info["endpoint"], info["side_channel"])):
            port = urlsplit(endpoint).port
            assert port is not None
            relay = Relay(host, port, ("127.0.0.1", port))
            await relay.start()
            made.append(relay)
        self.relays[child.pid] = made

    async def restart(self, child: Child) -> Child:
        """The same role at the same addresses, once `child` has ended."""
        await asyncio.to_thread(child.process.wait, END_S)
        relays = self.relays.pop(child.pid)
        host = relays[0].host
        for relay in relays:
            await relay.cut()
        self.cluster.instances.remove(child)
        port = urlsplit(child.plan.url).port
        again = self.launch(child.plan.role, host, port)
        await self.wire(again, host)
        return again

    async def whole(self) -> None:
        """All four are ready, and nothing is taken anywhere."""
        await self.cluster.ready_instances(4, END_S)
        await self.at_rest()

    async def at_rest(self) -> None:
        await self.at_rest_but(None)

    async def at_rest_but(self, victim: Child | None) -> None:
        """Nothing is taken on anybody else."""
        await self.until(lambda: self._in_flight(0), "the proxy has requests in flight")
        others = [child for child in self.cluster.instances if child is not victim]
        await self.cluster.at_rest(*others, timeout_s=END_S)

    async def _in_flight(self, wanted: int) -> bool:
        return bool((await self.status())["requests_in_flight"] == wanted)

    async def status(self) -> Any:
        return await self.cluster.get(f"{self.cluster.url}/status")

    async def count(self, name: str) -> int:
        return int((await self.status())["counts"][name])

    async def states(self) -> dict[str, str]:
        rows = (await self.status())["instances"]
        return {row["url"].rpartition(":")[2]: row["state"] for row in rows}

    async def is_left(self, child: Child) -> bool:
        """Has the proxy given it up?"""
        return await self.state_of(child) in ("dead", "unknown")

    async def is_gone(self, child: Child) -> bool:
        """Does the proxy know that nobody answers there?"""
        return await self.state_of(child) != "ready"

    async def has_work(self, child: Child) -> bool:
        """Has the proxy sent it something that has not ended?"""
        return bool((await self._work()).get(child.plan.url.rpartition(":")[2]))

    async def busiest(self, role: str) -> Child:
        work = await self._work()
        children = self.cluster.of(role)
        return max(children, key=lambda c: work.get(c.plan.url.rpartition(":")[2], 0))

    async def _work(self) -> dict[str, int]:
        """Requests by port."""
        rows = (await self.status())["instances"]
        return {row["url"].rpartition(":")[2]: row["requests"] for row in rows}

    async def incarnation_of(self, child: Child) -> str:
        return str((await self.cluster.get(f"{child.plan.url}/instance"))["incarnation"])

    async def state_of(self, child: Child) -> str:
        return (await self.states()).get(child.plan.url.rpartition(":")[2], "unknown")

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + END_S
        while not await condition():
            assert time.monotonic() < deadline, f"{what}\n{self.cluster.logs()}"
            await asyncio.sleep(0.1)

    # --- requests ------------------------------------------------------------------------------

    async def learn(self) -> None:
        """What every job is answered while nothing breaks."""
        self.jobs = jobs(MODEL, NUM_TOKENS, 300)
        for job in self.jobs:
            self.expected[job.name] = await self.ask(job)
        last = stopping(self.jobs[0], self.expected["greedy"].text())
        self.jobs.append(last)
        self.expected[last.name] = await self.ask(last)
        for name, answer in self.expected.items():
            assert answer.is_complete, f"{name}: {answer.error}"
        assert self.expected["stop string"].choices[0]["finish"] == "stop"
        json.loads(self.expected["schema"].text())

    async def ask(self, job: Job, **options: Any) -> Answer:
        """On a connection of its own, so that none is left behind."""
        async with aiohttp.ClientSession() as session:
            return await play(session, self.cluster.url, job, timeout_s=END_S, **options)

    @contextlib.asynccontextmanager
    async def streaming(self, *only: str, begun: bool = True) -> AsyncIterator[None]:
        """The body runs once every stream has begun (or is asked for: `begun=False`); afterwards
        each must have said what it says on a quiet day, to the last byte."""
        async with self.answers(*only, begun=begun) as answers:
            yield
        for job, answer in answers:
            self.check(job, answer)

    @contextlib.asynccontextmanager
    async def answers(
        self, *only: str, begun: bool = True
    ) -> AsyncIterator[list[tuple[Job, Answer]]]:
        """The same, and nothing is judged: the list is filled in the end."""
        chosen = [job for job in self.jobs if not only or job.name in only]
        events = [asyncio.Event() for _ in chosen]
        tasks = [
            asyncio.create_task(self.ask(job, running=event))
            for job, event in zip(chosen, events, strict=True)
        ]
        if begun:
            await asyncio.gather(*(event.wait() for event in events))
        found: list[tuple[Job, Answer]] = []
        yield found
        found += zip(chosen, await asyncio.gather(*tasks), strict=True)

    def check(self, job: Job, answer: Answer) -> None:
        self.longest_gap_s = max(self.longest_gap_s, answer.gap_s)
        self.longest_first_s = max(self.longest_first_s, answer.first_s)
        failed = f"{job.name}: {answer.status} {answer.error}\n{self.cluster.logs()}"
        assert answer.is_complete, failed
        assert answer.said() == self.expected[job.name].said(), f"{job.name} was altered"


@contextlib.asynccontextmanager
async def fleet_behind_relays(directory: Path) -> AsyncIterator[Fleet]:
    """2P2D at 127.0.0.11 and up, whole and with known answers."""
    made = Cluster(directory, str(Path(__file__).parents[2] / "models" / MODEL))
    made.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=END_S))
    fleet = Fleet(made)
    try:
        made.start_proxy()
        await fleet.registry_relay.start()
        for number, role in enumerate(("prefill", "prefill", "decode", "decode")):
            fleet.launch(role, f"127.0.0.{11 + number}")
        for number, child in enumerate(made.instances):
            await fleet.wire(child, f"127.0.0.{11 + number}")
        await fleet.whole()
        await fleet.learn()
        yield fleet
    finally:
        for child in made.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)
        await made.session.close()
        for relay in (r for relays in fleet.relays.values() for r in relays):
            await relay.cut()
        await fleet.registry_relay.cut()
        await stop(made.started, deadline_s=10.0)
