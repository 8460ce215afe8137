"""Instances of several ranks as real processes: right tokens, and no rank outlives its instance."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.common.parallel.in_processes import is_running
from tests.e2e.cluster import cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SHARED = ("--tensor-parallel-size", "2")
ARGUMENTS = (
    *("--dtype", "float32", "--max-model-len", "256", "--kv-cache-memory", "16MiB"),
    *("--cpu-cores", ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))),
)
needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="each rank needs a core"
)
PROMPT = list(range(100, 140))


def ranks_of(child) -> list[int]:
    """The process that serves, and those it has started."""
    text = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
    return [child.pid, *map(int, text.split())]


async def all_gone(pids: list[int], child, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while child.process.poll() is None or any(map(is_running, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if is_running(pid)]
        await asyncio.sleep(0.05)


@needs_two_cores
def test_however_an_instance_ends_all_its_ranks_end(tmp_path):
    async def body():
        arguments = (*ARGUMENTS, *SHARED)
        async with cluster(tmp_path, both=3, proxy=False, arguments=arguments) as made:
            answers = [
                await made.generate(child.plan.url, PROMPT, max_tokens=8, temperature=0)
                for child in made.instances
            ]
            assert answers[0] == answers[1] == answers[2] and len(answers[0]) > 0
            rank_dies, leader_dies, interrupted = made.instances
            groups = [ranks_of(child) for child in made.instances]
            assert [len(pids) for pids in groups] == [2, 2, 2]

            os.kill(groups[0][1], signal.SIGKILL)
            os.kill(leader_dies.pid, signal.SIGKILL)
            for pid in groups[2]:  # as a terminal's Ctrl-C reaches all of a group
                os.kill(pid, signal.SIGINT)
            for child, pids in zip(made.instances, groups, strict=True):
                await all_gone(pids, child)
            assert rank_dies.process.returncode == 70
            assert "rank 1" in rank_dies.plan.log.read_text()
            assert interrupted.process.returncode == 0

    asyncio.run(body())
