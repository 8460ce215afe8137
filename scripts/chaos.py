"""`xpyd chaos`: break a running deployment, within reason, and see whether anybody is told wrong.

    xpyd up --prefill 2 --decode 2 &
    xpyd chaos --topology run/topology.json --duration-s 120 --seed 7

Streams of every kind run while instances are killed, terminated, stopped and paused, links are cut,
silenced and slowed (`xpyd up --breakable-links`) and clients hang up; each answer is compared with
the one of a quiet day. Touches only processes that the topology file names, never the proxy, and no
instance that is the only one of its role. Without the file it only hangs up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import aiohttp

from common.errors import ConfigError
from scripts.faults.options import add_arguments
from scripts.faults.rounds import Rounds, Settings
from scripts.faults.schedule import KINDS, schedule
from scripts.faults.site import Site
from scripts.faults.targets import link_control, read_targets
from scripts.faults.verdict import HEAD, Row, line, report
from scripts.faults.workload import jobs


def run(args: argparse.Namespace) -> int:
    """0 pass, 1 fail."""
    if args.streams < 1 or args.tokens < 20:
        raise ConfigError("--streams must be at least 1 and --tokens at least 20")
    began = time.monotonic()
    rows: list[Row] = []
    try:
        asyncio.run(_run(args, rows))
    finally:
        result = report(rows, args.seed, time.monotonic() - began)
        if args.result_file:
            args.result_file.write_text(json.dumps(result, indent=1) + "\n")
    short = {name: value for name, value in result.items() if name != "rounds"}
    print(f"\n{json.dumps(short)}")
    return 0 if result["verdict"] == "pass" else 1


async def _run(args: argparse.Namespace, rows: list[Row]) -> None:
    """Appends to `rows`, so that what was seen is reported however this ends."""
    targets = read_targets(args.topology) if args.topology else []
    names = [target.name for target in targets]
    kinds = _possible(args, bool(targets))
    settings = Settings(
        args.topology,
        args.stream_timeout_s,
        args.recovery_timeout_s,
        args.gap_factor,
        may_restart=not args.no_restart,
    )
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    timeout = aiohttp.ClientTimeout(total=args.stream_timeout_s)
    # A connection of its own for each request: a pool would hide what hang-ups leave behind.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        site = Site(session, args.url)
        rounds = Rounds(site, settings, jobs(await site.model(), args.tokens, 300))
        print("learning the answers of a quiet day …", flush=True)
        await rounds.learn()
        print(HEAD, flush=True)
        deadline = time.monotonic() + args.duration_s
        for fault in schedule(args.seed, kinds, names):
            if time.monotonic() > deadline:
                break
            rows.append(await rounds.run(fault, args.streams))
            print(line(rows[-1]), flush=True)
            if rows[-1].whole_after_s is None:
                break
        if pids := rounds.left_running():
            print(f"started by chaos, and yours to stop: {', '.join(map(str, pids))}")


def _possible(args: argparse.Namespace, has_targets: bool) -> list[str]:
    """Of the kinds that were asked for, those that this deployment lets us bring about."""
    kinds = [KINDS[name] for name in args.faults or KINDS]
    if not has_targets:
        return [kind.name for kind in kinds if kind.victims == "none"]
    if link_control(args.topology):
        return [kind.name for kind in kinds]
    if args.faults and any(kind.link for kind in kinds):
        raise ConfigError("no links to break here: start with `xpyd up --breakable-links`")
    return [kind.name for kind in kinds if not kind.link]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except ConfigError as error:
        print(f"chaos: {error.message}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
