"""`xpyd bench`: hands over to the harness in benchmarks/, importing only the chosen part."""

from __future__ import annotations

import argparse
import importlib

_PARTS = {
    "serve": ("benchmarks.serve", "load one server: TTFT, TPOT, ITL, throughput, goodput"),
    "compare": ("benchmarks.compare", "the same load on two servers, alternating, with ratios"),
}


def build_parser(arguments: list[str]) -> argparse.ArgumentParser:
    """Only the part that `arguments` name gets its flags: the others stay unimported."""
    parser = argparse.ArgumentParser(prog="xpyd bench")
    commands = parser.add_subparsers(dest="part", metavar="COMMAND", required=True)
    for name, (module, text) in _PARTS.items():
        part = commands.add_parser(name, help=text)
        if arguments[:1] == [name]:
            importlib.import_module(module).add_arguments(part)
    return parser


def run(arguments: list[str]) -> int:
    args = build_parser(arguments).parse_args(arguments)
    status: int = importlib.import_module(_PARTS[args.part][0]).run(args)
    return status
