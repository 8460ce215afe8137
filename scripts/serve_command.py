"""`xpyd serve`: one instance, with all roles it may be asked to play later."""

from __future__ import annotations

from common.config import ServeConfig
from common.instance.server import run_instance
from decode.server import plan_both, plan_decode
from prefill.server import plan_prefill


def run(config: ServeConfig) -> int:
    return run_instance(
        config,
        {"prefill": plan_prefill, "decode": plan_decode, "both": plan_both},
        rank_program="scripts.rank_process",
    )
