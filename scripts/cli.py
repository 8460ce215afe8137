"""The `xpyd` command: parses, then imports only what the chosen sub-command needs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from common.config import ProxyConfig, ServeConfig, UpConfig
from common.errors import ConfigError
from common.options import add_options, from_args
from common.version import VERSION
from scripts.faults.options import add_arguments as add_chaos_arguments


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xpyd", description="Disaggregated prefill/decode serving of large language models."
    )
    parser.add_argument("--version", action="version", version=f"xpyd {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser("serve", help="run one instance: prefill, decode or both")
    add_options(serve, ServeConfig)
    proxy = commands.add_parser("proxy", help="run the proxy: the OpenAI API over a fleet")
    add_options(proxy, ProxyConfig)
    up = commands.add_parser(
        "up",
        help="run a whole topology on this machine",
        epilog="What follows -- goes to every instance, e.g. -- --max-model-len 4096",
    )
    add_options(up, UpConfig)
    roll = commands.add_parser(
        "rolling-restart",
        help="restart the instances of a running `xpyd up` without a failed request",
    )
    roll.add_argument("--topology-file", default="run/topology.json", metavar="FILE")
    roll.add_argument(
        "--timeout-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="for one instance to drain and come back (default 600)",
    )
    bench = commands.add_parser("bench", help="measure a server", add_help=False)
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    chaos = commands.add_parser(
        "chaos", help="break a running deployment within reason, and check every answer"
    )
    add_chaos_arguments(chaos)
    chat = commands.add_parser("chat", help="talk to a server from the terminal")
    chat.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server")
    chat.add_argument("--model", default=None, help="default: the first one the server lists")
    chat.add_argument("--api-key", default=os.environ.get("XPYD_API_KEY"))
    chat.add_argument("--system", default=None, help="a system message")
    chat.add_argument("--max-tokens", type=int, default=256)
    chat.add_argument("--temperature", type=float, default=0.0)
    top = commands.add_parser(
        "top",
        help="watch a proxy's fleet in the terminal",
        epilog="q or Ctrl-C leaves. Without a terminal it prints once.",
    )
    top.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the proxy")
    top.add_argument("--api-key", default=os.environ.get("XPYD_API_KEY"))
    top.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="between looks")
    top.add_argument("--once", action="store_true", help="print once, all of it")
    top.add_argument("--json", action="store_true", help="print what the proxy says, once")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be from 0.1 to 3600 seconds")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 failed while running, 2 wrong arguments or settings."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, instance_arguments = _split_at_dashes(given)
    args = build_parser().parse_args(own)
    if instance_arguments and args.command != "up":
        build_parser().error("only `xpyd up` takes arguments after --")
    logging.basicConfig(
        level=os.environ.get("XPYD_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )
    try:
        return _COMMANDS[args.command](args, instance_arguments)
    except ConfigError as error:
        print(f"xpyd {args.command}: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _split_at_dashes(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _serve(args: argparse.Namespace, _: list[str]) -> int:
    config = from_args(ServeConfig, args, os.environ)
    from scripts.serve_command import run

    return run(config)


def _proxy(args: argparse.Namespace, _: list[str]) -> int:
    config = from_args(ProxyConfig, args, os.environ)
    from scripts.proxy_command import run

    return run(config, os.environ.get("ADMIN_API_KEY"))


def _up(args: argparse.Namespace, instance_arguments: list[str]) -> int:
    config = from_args(UpConfig, args, os.environ)
    from scripts.up import run

    return run(config, instance_arguments)


def _rolling_restart(args: argparse.Namespace, _: list[str]) -> int:
    from scripts.rolling_restart import run

    return run(args.topology_file, args.timeout_seconds)


def _bench(args: argparse.Namespace, _: list[str]) -> int:
    from scripts.bench_command import run

    return run(args.arguments)


def _chaos(args: argparse.Namespace, _: list[str]) -> int:
    from scripts.chaos import run

    return run(args)


def _chat(args: argparse.Namespace, _: list[str]) -> int:
    from scripts.chat import run

    return run(args)


def _top(args: argparse.Namespace, _: list[str]) -> int:
    from scripts.top.command import run

    return run(args)


_COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "serve": _serve,
    "proxy": _proxy,
    "up": _up,
    "rolling-restart": _rolling_restart,
    "bench": _bench,
    "chaos": _chaos,
    "chat": _chat,
    "top": _top,
}

if __name__ == "__main__":
    sys.exit(main())
