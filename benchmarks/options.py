"""The command line's words for a target, a workload and a report, and what they become. Starts
nothing.

`serve` and `compare` share them, so one workload is spelled the same everywhere; names are vLLM's
where it has one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arrivals import arrival_times, read_trace
from benchmarks.client import Target
from benchmarks.dataset import BenchRequest, RandomShape, random_requests, text_requests
from benchmarks.measure import Plan
from benchmarks.report import METRICS
from benchmarks.slo import Slo
from benchmarks.vocabulary import IdVocabulary, TokenizerVocabulary, Vocabulary
from common.errors import ConfigError

_DEFAULT_TEXT_OUTPUT = 128


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument("--model", default="", help="default: the first that the server lists")
    group.add_argument("--endpoint", default="/v1/completions", help="or /v1/chat/completions")
    group.add_argument("--api-key", help="default: $XPYD_API_KEY or $OPENAI_API_KEY")
    group.add_argument(
        "--temperature", type=float, default=0.0, help="negative: the server's default"
    )
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="always generate the wanted length; default: with --dataset random only",
    )
    group.add_argument("--extra-body", metavar="JSON", help="fields added to every request")
    group.add_argument(
        "--request-timeout", type=float, default=600.0, metavar="S", help="for a whole request"
    )
    group.add_argument(
        "--ready-timeout", type=float, default=0.0, metavar="S", help="wait for the server"
    )


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload")
    group.add_argument("--dataset", choices=("random", "text"), default="random")
    group.add_argument("--dataset-path", type=Path, help="text: a prompt per line, or .jsonl")
    group.add_argument("--num-prompts", type=int, default=100)
    group.add_argument("--input-len", type=int, default=1024, help="random: tokens")
    group.add_argument("--output-len", type=int, help="tokens; default 128")
    group.add_argument("--random-range-ratio", type=float, default=0.0, metavar="R")
    group.add_argument("--random-prefix-len", type=int, default=0, help="shared leading tokens")
    group.add_argument("--tokenizer", type=Path, help="tokenizer.json: random text of exact length")
    group.add_argument("--vocab-size", type=int, default=1000, help="random ids without tokenizer")
    group.add_argument("--num-warmups", type=int, default=0, help="unmeasured requests before")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("arrivals (default: all at once)")
    group.add_argument("--request-rate", type=float, default=math.inf, help="requests per second")
    group.add_argument(
        "--burstiness", type=float, default=1.0, help="1: Poisson; less: bursts; inf: even gaps"
    )
    group.add_argument("--trace-file", type=Path, help="arrival times in seconds, one per line")
    group.add_argument(
        "--max-concurrency",
        type=int,
        help="alone: this many at a time; with a rate: a limit behind which requests wait",
    )


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--slo", metavar="ttft_ms=N,tpot_ms=N,itl_ms=N,e2el_ms=N", help="goodput")
    group.add_argument(
        "--percentile-metrics", default="ttft,tpot,itl,e2el", help=f"of {','.join(METRICS)}"
    )
    group.add_argument("--metric-percentiles", default="50,90,99")


def target_from(args: argparse.Namespace, base_url: str) -> Target:
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError("the server's URL must start with http:// or https://")
    if not args.endpoint.rstrip("/").endswith("/completions"):
        raise ConfigError("--endpoint must be /v1/completions or /v1/chat/completions")
    if args.request_timeout <= 0:
        raise ConfigError("--request-timeout must be greater than 0")
    ignore_eos = args.dataset == "random" if args.ignore_eos is None else args.ignore_eos
    body: dict[str, Any] = {"ignore_eos": True} if ignore_eos else {}
    if args.temperature >= 0:
        body["temperature"] = args.temperature
    body |= _extra_body(args.extra_body)
    return Target(
        base_url=base_url,
        endpoint=args.endpoint,
        model=args.model,
        api_key=args.api_key or _key_from_environment(),
        body=body,
        timeout_s=args.request_timeout,
    )


def _key_from_environment() -> str | None:
    return os.environ.get("XPYD_API_KEY") or os.environ.get("OPENAI_API_KEY") or None


def _extra_body(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra-body is not JSON: {error.msg}") from None
    if not isinstance(body, dict):
        raise ConfigError("--extra-body must be a JSON object")
    if body.get("n", 1) != 1 or body.get("stream", True) is not True:
        raise ConfigError("--extra-body: one streamed choice per request is what is measured")
    return body


def plan_from(args: argparse.Namespace, *, seed: int) -> Plan:
    for name in ("num_prompts", "max_concurrency"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    if args.num_warmups < 0 or seed < 0:
        raise ConfigError("--num-warmups and --seed must not be negative")
    requests = _requests(args, args.num_prompts + args.num_warmups, seed)
    return Plan(
        requests=requests[: args.num_prompts],
        warmups=requests[args.num_prompts :],
        times=_times(args, seed),
        max_concurrency=args.max_concurrency,
    )


def _requests(args: argparse.Namespace, count: int, seed: int) -> list[BenchRequest]:
    is_chat = args.endpoint.rstrip("/").endswith("chat/completions")
    output_len = _DEFAULT_TEXT_OUTPUT if args.output_len is None else args.output_len
    if output_len < 1:
        raise ConfigError("--output-len must be at least 1")
    tokenizer = TokenizerVocabulary.load(args.tokenizer) if args.tokenizer else None
    if args.dataset == "text":
        if args.dataset_path is None:
            raise ConfigError("--dataset text needs --dataset-path")
        return text_requests(count, args.dataset_path, output_len, tokenizer, chat=is_chat)
    if args.dataset_path is not None:
        raise ConfigError("--dataset-path needs --dataset text")
    shape = RandomShape(args.input_len, output_len, args.random_prefix_len, args.random_range_ratio)
    vocabulary: Vocabulary = tokenizer or IdVocabulary(args.vocab_size)
    return random_requests(count, shape, vocabulary, seed, as_text=is_chat)


def _times(args: argparse.Namespace, seed: int) -> list[float] | None:
    """None means fixed concurrency."""
    if args.trace_file is not None:
        if not math.isinf(args.request_rate):
            raise ConfigError("give --request-rate or --trace-file, not both")
        times = read_trace(args.trace_file)
        if len(times) < args.num_prompts:
            raise ConfigError(
                f"--trace-file holds {len(times)} times for {args.num_prompts} prompts"
            )
        return times[: args.num_prompts]
    if math.isinf(args.request_rate) and args.max_concurrency is not None:
        return None
    return arrival_times(args.num_prompts, args.request_rate, args.burstiness, seed)


def slo_from(args: argparse.Namespace) -> Slo | None:
    return None if args.slo is None else Slo.parse(args.slo)


def metrics_from(args: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in args.percentile_metrics.split(",") if name.strip()]
    if unknown := set(names) - set(METRICS):
        raise ConfigError(f"--percentile-metrics: unknown {', '.join(sorted(unknown))}")
    return names


def percentiles_from(args: argparse.Namespace) -> list[float]:
    try:
        values = [float(text) for text in args.metric_percentiles.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0.0 <= value <= 100.0 for value in values):
        raise ConfigError("--metric-percentiles must be numbers from 0 to 100")
    return values


def asked(args: argparse.Namespace, model: str, label: str | None) -> dict[str, Any]:
    """What a summary starts with: vLLM's names first, then the workload, enough to run it again."""
    is_chat = args.endpoint.rstrip("/").endswith("chat/completions")
    backend = "openai-chat" if is_chat else "openai"
    rate = args.request_rate
    return {
        "endpoint_type": backend,
        "backend": backend,
        "label": label,
        "model_id": model,
        "tokenizer_id": None if args.tokenizer is None else str(args.tokenizer),
        "num_prompts": args.num_prompts,
        "request_rate": "inf" if math.isinf(rate) else rate,
        "burstiness": "inf" if math.isinf(args.burstiness) else args.burstiness,
        "max_concurrency": args.max_concurrency,
        "workload": _workload(vars(args)),
    }


def _workload(args: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "endpoint dataset dataset_path input_len output_len random_range_ratio random_prefix_len "
        "vocab_size num_warmups seed trace_file temperature ignore_eos extra_body"
    )
    return {
        name: str(value) if isinstance(value := args[name], Path) else value
        for name in names.split()
    }
