"""Which cores each rank of an instance computes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import ConfigError


def rank_cores(cores: Sequence[int], num_ranks: int, *, are_named: bool) -> list[list[int]]:
    """Neighbouring cores, as evenly as can be.

    are_named:  by `--cpu-cores`: then each rank gets one of its own, or ConfigError. Otherwise
                ranks take turns where there are fewer cores.
    """
    if len(cores) < num_ranks:
        if are_named:
            raise ConfigError(
                f"--cpu-cores names {len(cores)} cores for --tensor-parallel-size {num_ranks}: "
                "each rank needs one"
            )
        return [[cores[rank % len(cores)]] for rank in range(num_ranks)]
    borders = [len(cores) * rank // num_ranks for rank in range(num_ranks + 1)]
    return [list(cores[a:b]) for a, b in zip(borders, borders[1:], strict=False)]
