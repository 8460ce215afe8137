"""`xpyd bench compare`: one workload against two URLs, alternating round by round, with medians and
ratios.

Rounds run A B, B A, A B, …, so that a machine that slowly gets faster or slower favours neither
side. Both sides of a round get the same requests at the same times; each round draws new ones, so
that no prefix cache remembers the last. Exit status as `serve`'s; 1 also when one side of a round
completed nothing.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import options
from benchmarks.client import Target
from benchmarks.measure import check_reachable, measure
from benchmarks.ratios import Row, compare, names_of, render
from benchmarks.report import summarize
from benchmarks.serve import check_writable, report_errors, run_async, say, to_json
from benchmarks.table import cautions
from common.errors import ConfigError

Pair = tuple[dict[str, Any], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--a", required=True, metavar="URL", help="the baseline")
    parser.add_argument("--b", required=True, metavar="URL", help="what is compared with it")
    parser.add_argument("--label-a", default="", help="default: its URL")
    parser.add_argument("--label-b", default="", help="default: its URL")
    parser.add_argument("--rounds", type=int, default=3)
    options.add_target_arguments(parser)
    options.add_workload_arguments(parser)
    options.add_report_arguments(parser)
    parser.add_argument("--result-file", type=Path, help="rows and every summary as JSON")


def run(args: argparse.Namespace) -> int:
    return report_errors(lambda: _compare(args))


def _compare(args: argparse.Namespace) -> int:
    if args.rounds < 1:
        raise ConfigError("--rounds must be at least 1")
    check_writable(args.result_file)
    metrics, percentiles = options.metrics_from(args), options.percentiles_from(args)
    slo = options.slo_from(args)
    rounds, is_interrupted = run_async(_run_rounds(args))
    rows = compare(rounds, names_of(metrics, percentiles, has_slo=slo is not None))
    label_a, label_b = _labels(args)
    if rounds:
        print(render(rows, label_a, label_b, len(rounds)))
    if args.result_file is not None:
        result = {
            "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
            "interrupted": is_interrupted,
            "a": label_a,
            "b": label_b,
            "rows": {row.name: _cells(row) for row in rows},
            "rounds": [{"a": a, "b": b} for a, b in rounds],
        }
        args.result_file.write_text(to_json(result) + "\n", "utf-8")
    if is_interrupted:
        say("warning: interrupted: only complete rounds are shown")
        return 130
    return 0 if all(side["completed"] for pair in rounds for side in pair) else 1


def _cells(row: Row) -> dict[str, float | None]:
    return {name: getattr(row, name) for name in ("a", "b", "ratio", "lowest", "highest")}


def _labels(args: argparse.Namespace) -> tuple[str, str]:
    return args.label_a or args.a, args.label_b or args.b


async def _run_rounds(args: argparse.Namespace) -> tuple[list[Pair], bool]:
    """The complete rounds, and whether Ctrl-C ended them early."""
    sides = {"a": options.target_from(args, args.a), "b": options.target_from(args, args.b)}
    labels = dict(zip(sides, _labels(args), strict=True))
    for target in sides.values():  # both, before the first long run
        await check_reachable(target, args.ready_timeout)
    rounds: list[Pair] = []
    for number in range(args.rounds):
        done: dict[str, dict[str, Any]] = {}
        for side in ("a", "b") if number % 2 == 0 else ("b", "a"):
            summary = await _run_side(args, sides[side], labels[side], args.seed + number)
            if summary["interrupted"]:
                return rounds, True
            done[side] = summary
            _tell(f"round {number + 1} of {args.rounds}, {labels[side]}", summary)
        rounds.append((done["a"], done["b"]))
    return rounds, False


async def _run_side(
    args: argparse.Namespace, target: Target, label: str, seed: int
) -> dict[str, Any]:
    plan = options.plan_from(args, seed=seed)
    result, model = await measure(plan, target, say=say)
    summary = options.asked(args, model, label) | summarize(
        result,
        metrics=options.metrics_from(args),
        percentiles=options.percentiles_from(args),
        slo=options.slo_from(args),
    )
    summary["workload"]["seed"] = seed
    summary["warnings"] = cautions(summary)
    return summary


def _tell(where: str, summary: dict[str, Any]) -> None:
    say(f"{where}: {summary['completed']} completed, {summary['failed']} failed")
    for caution in summary["warnings"]:
        say(f"  warning: {caution}")
    for reason, count in summary["error_counts"].items():
        say(f"  failed x {count}: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="xpyd bench compare", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
