"""Start, watch and stop processes: what `xpyd up` does to the machine. Stops only what it
started.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from scripts.topology import ProcessPlan

STOP_AFTER_S = 40.0  # longer than an instance's own drain
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    plan: ProcessPlan
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.process.pid

    def death(self) -> str | None:
        """One line about how it ended, None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        how = (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )
        reason = last_words(self.plan.log)
        return f"{self.plan.name} (pid {self.pid}) {how}" + (f": {reason}" if reason else "")


def start(plan: ProcessPlan, *, keep_log: bool = False) -> Child:
    """In a session of its own, so that a terminal's Ctrl-C reaches only the launcher.

    keep_log:  write on behind what an earlier process left, instead of anew
    """
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    with open(plan.log, "ab" if keep_log else "wb") as log:
        return Child(plan, spawn(plan.argv, plan.env, log))


def spawn(
    argv: list[str], environment: dict[str, str], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """One program of ours with more in its environment; without `log` it writes where we do. It
    ends with us."""
    root = str(Path(__file__).parent.parent)
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        env=env,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


async def stop(children: list[Child], deadline_s: float = STOP_AFTER_S) -> None:
    """SIGTERM in the order given, group by group as listed; SIGKILL for whoever is left at the
    end.
    """
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    deadline = time.monotonic() + deadline_s
    while any(child.process.poll() is None for child in children):
        if time.monotonic() > deadline:
            for child in children:
                if child.process.poll() is None:
                    child.process.kill()
            break
        await asyncio.sleep(0.05)
    for child in children:
        child.process.wait()


def last_words(log: Path) -> str:
    """The last line of a log that says something: what a user needs to see of a dead child."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:500]


def _die_with_parent() -> None:
    """Linux: SIGTERM to the child should the launcher be killed outright."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
