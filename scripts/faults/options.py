"""The options of `xpyd chaos`; imports nothing that is slow."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from scripts.faults.schedule import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the proxy")
    parser.add_argument(
        "--topology",
        type=Path,
        metavar="FILE",
        help="what `xpyd up` wrote (run/topology.json); without it nothing but hang-ups",
    )
    parser.add_argument("--api-key", default=os.environ.get("XPYD_API_KEY"))
    parser.add_argument("--duration-s", type=float, default=120.0, help="begin no round after this")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same faults in same order")
    parser.add_argument("--streams", type=int, default=7, help="at once; as many come later")
    parser.add_argument("--tokens", type=int, default=400, help="per answer")
    parser.add_argument(
        "--faults",
        nargs="+",
        choices=list(KINDS),
        help="what may happen; default: all that this deployment lets us do",
    )
    parser.add_argument(
        "--gap-factor",
        type=float,
        default=1.0,
        help="times the limits for pauses: more than 1 for a slow or busy machine",
    )
    parser.add_argument("--stream-timeout-s", type=float, default=120.0)
    parser.add_argument(
        "--recovery-timeout-s", type=float, default=120.0, help="for all instances to be back"
    )
    parser.add_argument(
        "--no-restart",
        action="store_true",
        help="leave it to others to start what has ended; default: do it after 8 s",
    )
    parser.add_argument("--result-file", type=Path, metavar="FILE", help="the verdict as JSON")
