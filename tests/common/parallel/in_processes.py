"""Test support: ranks as processes, and whether a process still runs."""

from __future__ import annotations

import os
from pathlib import Path

from common.instance.parts import RankPlan
from common.parallel.cores import rank_cores


def in_processes(num_ranks: int) -> RankPlan:
    """On the cores that there are, though they be fewer."""
    cores = rank_cores(sorted(os.sched_getaffinity(0)), num_ranks, are_named=False)
    return RankPlan("scripts.rank_process", cores)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
