"""One round: streams run, one thing breaks, and each answer is held against that of a quiet day."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from scripts.faults.links import Order, give_order
from scripts.faults.schedule import Fault
from scripts.faults.site import Site, until
from scripts.faults.stream import Answer, play
from scripts.faults.targets import Target, is_kept, link_control, read_targets, start_again
from scripts.faults.verdict import Row
from scripts.faults.workload import Job

STOP_S = 30.0
PAUSE_S = 1.0
SUPERVISOR_S = 8.0  # that somebody else gets to bring an instance back before we do
EXIT_S = 45.0  # an instance's drain, and a little
REST_S = 15.0
MAX_HANG_UP = 60  # pieces


@dataclass(frozen=True, slots=True)
class Settings:
    topology: Path | None
    timeout_s: float  # of one stream
    whole_s: float  # until all are ready again
    gap_factor: float  # times the limits: for machines that are not the promise's
    may_restart: bool


class Rounds:
    def __init__(self, site: Site, settings: Settings, jobs: list[Job]) -> None:
        self._site = site
        self._settings = settings
        self._jobs = jobs
        self._expected: dict[str, Answer] = {}
        self._num_instances = 0
        self._victim: Target | None = None  # the process that was touched last
        self._started: list[subprocess.Popen[bytes]] = []  # kept: their ends are ours to collect

    async def learn(self) -> None:
        """Every job's answer while nothing breaks, twice: an answer that changes by itself would
        make each comparison void. Raises ConfigError."""
        self._num_instances = await self._site.num_ready()
        for job in self._jobs:
            first, second = [await self._play(job) for _ in range(2)]
            if not (first.is_complete and second.is_complete):
                raise ConfigError(f"{job.name} is not answered: {first.error or second.error}")
            if first.said() != second.said():
                raise ConfigError(f"{job.name} is answered differently each time: not comparable")
            self._expected[job.name] = first

    async def run(self, fault: Fault, num_streams: int) -> Row:
        """Bring `fault` about under that many streams, and wait until all is whole again."""
        kind = fault.kind
        limit_s = kind.gap_limit_s * self._settings.gap_factor
        row = Row(kind.name, fault.victim, limit_s)
        before = await self._site.migrations()
        began = time.monotonic()
        answers = await self._break(fault, num_streams)
        row.whole_after_s = await self._restore(fault, began)
        row.streams = len(answers)
        for job, answer, was_cut in answers:
            self._judge(row, self._expected[job.name], answer, was_cut)
        if row.whole_after_s is None:
            row.complaints.append("not all instances came back")
            return row
        row.migrations = await self._site.migrations() - before
        if row.migrations and not kind.may_move:
            row.complaints.append(f"{row.migrations} streams moved without need")
        urls = [target.url for target in self._targets()]
        if left := await self._site.at_rest(urls, REST_S * self._settings.gap_factor):
            row.complaints.append(f"not at rest: {left}")
        return row

    def left_running(self) -> list[int]:
        """Pids that we started and that outlive us."""
        return [process.pid for process in self._started if process.poll() is None]

    # --- inside ------------------------------------------------------------------------------

    async def _play(
        self, job: Job, begun: asyncio.Event | None = None, hang_up_after: int | None = None
    ) -> Answer:
        return await play(
            self._site.session,
            self._site.url,
            job,
            timeout_s=self._settings.timeout_s,
            running=begun,
            hang_up_after=hang_up_after,
        )

    async def _break(self, fault: Fault, num_streams: int) -> list[tuple[Job, Answer, bool]]:
        """(job, answer, did we hang up?) for each stream."""
        rng = random.Random(fault.seed)
        first = rng.randrange(len(self._jobs))
        chosen = [self._jobs[(first + i) % len(self._jobs)] for i in range(num_streams)]
        cuts = [
            rng.randrange(1, MAX_HANG_UP) if fault.kind.name == "hang-up" else None for _ in chosen
        ]
        was_cut = [cut is not None for cut in cuts]
        begun = [asyncio.Event() for _ in chosen]
        tasks = [
            asyncio.create_task(self._play(job, event, cut))
            for job, event, cut in zip(chosen, begun, cuts, strict=True)
        ]
        try:
            await asyncio.gather(*(event.wait() for event in begun))
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            if fault.victim:  # as many again come while it is broken: prompts, too, must get on
                tasks += [asyncio.create_task(self._play(job)) for job in chosen]
                chosen, was_cut = chosen * 2, [*was_cut, *(False for _ in chosen)]
            await self._act(fault)
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return list(zip(chosen, answers, was_cut, strict=True))

    async def _act(self, fault: Fault) -> None:
        if not fault.victim:
            return
        if fault.kind.link is not None:
            await self._break_link(fault)
            return
        victim = self._victim = next(t for t in self._targets() if t.name == fault.victim)
        if fault.kind.is_fatal:
            victim.signal(signal.SIGKILL if fault.kind.name == "kill" else signal.SIGTERM)
            return
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(STOP_S if fault.kind.name == "stop" else PAUSE_S)
        finally:
            victim.signal(signal.SIGCONT)

    async def _break_link(self, fault: Fault) -> None:
        """It mends itself; a round is over when it has."""
        assert self._settings.topology is not None
        assert fault.kind.link is not None
        seconds = fault.kind.link_s
        try:
            order = Order(fault.victim, fault.kind.link, seconds)
            await give_order(link_control(self._settings.topology), order)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise ConfigError(f"the link of {fault.victim} cannot be broken: {error}") from None
        await asyncio.sleep(seconds)

    async def _restore(self, fault: Fault, began: float) -> float | None:
        """Seconds from `began` until everybody is ready; None if that does not come about."""
        if fault.kind.is_fatal:
            assert self._victim is not None
            await self._bring_back(self._victim)

        async def is_whole() -> bool:
            for target in self._targets():  # the proxy may not have missed it yet
                if not (target.is_running() and await self._site.is_healthy(target.url)):
                    return False
            return await self._site.num_ready() == self._num_instances

        if not await until(is_whole, self._settings.whole_s):
            return None
        return time.monotonic() - began

    async def _bring_back(self, old: Target) -> None:
        """A launcher that keeps its children will start it again; else somebody, or we do."""

        def target() -> Target:
            return next(each for each in self._targets() if each.name == old.name)

        async def is_gone() -> bool:
            return not old.is_running()

        async def is_replaced() -> bool:
            return target().pid != old.pid or await self._site.is_healthy(old.url)

        await until(is_gone, EXIT_S)
        path = self._settings.topology
        assert path is not None
        if is_kept(path) or not self._settings.may_restart:
            return
        if not await until(is_replaced, SUPERVISOR_S):
            self._started.append(start_again(old, path))

    def _targets(self) -> list[Target]:
        """As the file says now: whoever restarts an instance changes it."""
        return read_targets(self._settings.topology) if self._settings.topology else []

    def _judge(self, row: Row, expected: Answer, answer: Answer, was_cut: bool) -> None:
        row.gap_s = max(row.gap_s, answer.gap_s, answer.first_s)
        if answer.is_refused:
            row.refused += 1
        elif was_cut and not answer.error:
            row.altered += not answer.is_prefix_of(expected)
        elif not answer.is_complete:
            row.failed += 1
            row.complaints.append(f"{answer.job}: {answer.error[:120]}")
        else:
            row.altered += answer.said() != expected.said()
