"""`xpyd bench serve`: one workload against one OpenAI-compatible URL; a table, a summary JSON, one
line per request.

Exit status: 0, also when some requests failed (they are counted); 1 when all failed or nothing
answers; 2 for settings that make no sense; 130 after Ctrl-C, with partial results written and
marked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from benchmarks import options
from benchmarks.client import Unreachable
from benchmarks.measure import WarmupFailed, measure
from benchmarks.report import Run, details, request_line, summarize
from benchmarks.sample import Sample
from benchmarks.table import cautions, render
from common.errors import ConfigError

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", required=True, help="with or without /v1")
    options.add_target_arguments(parser)
    options.add_workload_arguments(parser)
    options.add_report_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--result-file", type=Path, help="the summary as JSON")
    group.add_argument("--requests-file", type=Path, help="every request as a line of JSON")
    group.add_argument("--save-detailed", action="store_true", help="lists per request, as vLLM's")
    group.add_argument("--label", help="kept in the summary")
    group.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE")
    group.add_argument("--disable-progress", "--disable-tqdm", action="store_true")


def run(args: argparse.Namespace) -> int:
    return report_errors(lambda: _serve(args))


def report_errors(work: Callable[[], int]) -> int:
    """Do it; what a user can get wrong becomes one clear line and an exit status."""
    try:
        return work()
    except ConfigError as error:
        say(f"error: {error.message}")
        return 2
    except (Unreachable, WarmupFailed) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(args: argparse.Namespace) -> int:
    metadata = _metadata(args.metadata)
    slo = options.slo_from(args)
    metrics, percentiles = options.metrics_from(args), options.percentiles_from(args)
    target = options.target_from(args, args.base_url)
    plan = options.plan_from(args, seed=args.seed)
    for path in (args.result_file, args.requests_file):
        check_writable(path)
    bar = _progress(args)
    result, model = run_async(
        measure(plan, target, ready_timeout_s=args.ready_timeout, on_done=bar.step, say=say)
    )
    bar.close()
    date = {"date": datetime.now().strftime("%Y%m%d-%H%M%S")}
    summary = date | options.asked(args, model, args.label) | metadata
    summary |= summarize(result, metrics=metrics, percentiles=percentiles, slo=slo)
    summary["warnings"] = cautions(summary)
    print(render(summary, metrics, percentiles))
    for caution in summary["warnings"]:
        say(f"warning: {caution}")
    if args.requests_file is not None:
        lines = (request_line(sample, result.started_s, slo) for sample in result.samples)
        args.requests_file.write_text("".join(to_json(line) + "\n" for line in lines), "utf-8")
    if args.result_file is not None:
        full = summary | details(result) if args.save_detailed else summary
        args.result_file.write_text(to_json(full) + "\n", "utf-8")
    return exit_status(result)


def exit_status(result: Run) -> int:
    if result.is_interrupted:
        return 130
    return 0 if result.completed else 1


class _Bar:
    """The progress bar: only on a terminal, only on stderr."""

    def __init__(self, total: int, is_off: bool) -> None:
        self._bar = tqdm(total=total, unit="req", disable=True if is_off else None)
        self._failed = 0

    def step(self, sample: Sample) -> None:
        self._bar.update()
        if not sample.ok:
            self._failed += 1
            self._bar.set_postfix(failed=self._failed)

    def close(self) -> None:
        self._bar.close()


def _progress(args: argparse.Namespace) -> _Bar:
    return _Bar(args.num_prompts, args.disable_progress)


def _metadata(pairs: list[str]) -> dict[str, str]:
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise ConfigError(f"--metadata: {bad[0]!r} is not KEY=VALUE")
    return {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}


def check_writable(path: Path | None) -> None:
    """Before the run, not after it: a long measurement must not be lost to a misspelled folder."""
    if path is None:
        return
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}"
        ) from None


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """On uvloop where it exists: its own cost per chunk is about half."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def main() -> int:
    parser = argparse.ArgumentParser(prog="xpyd bench serve", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
