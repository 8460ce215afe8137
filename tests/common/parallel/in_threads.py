"""Test support: ranks as threads of this process, with real gloo groups between them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch._C._distributed_c10d import HashStore

from common.model.shards import Shard
from common.parallel.group import GroupRanks, make_group

T = TypeVar("T")


def in_ranks(num_ranks: int, work: Callable[[GroupRanks], T]) -> list[T]:
    """What `work` returns on each rank, in rank order."""
    store = HashStore()
    cpu = torch.device("cpu")

    def join(rank: int) -> GroupRanks:
        return make_group(store, Shard(rank, num_ranks), cpu, in_order=True)

    with ThreadPoolExecutor(num_ranks) as threads:
        # Kept until all are done: nobody closes its connections under another's hands.
        groups = list(threads.map(join, range(num_ranks), timeout=120.0))
        return list(threads.map(work, groups, timeout=120.0))
