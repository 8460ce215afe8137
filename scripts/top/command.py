"""`xpyd top`: the status page in a terminal, until q or Ctrl-C; `--once`, `--json` for scripts."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from scripts.top.screen import Screen
from scripts.top.view import view

TIMEOUT_S = 5.0
MAX_BYTES = 16 << 20
_NO_TERMINAL = (120, 10_000)  # columns and lines


class NoStatus(Exception):
    """Why there is nothing to show, for people."""


def run(args: argparse.Namespace) -> int:
    """1, and one line on stderr, if the proxy cannot be asked at first."""
    base = args.url.rstrip("/").removesuffix("/v1")
    is_live = not (args.once or args.json) and sys.stdout.isatty() and sys.stdin.isatty()
    try:
        status = fetch(base, args.api_key)
        if args.json:
            print(json.dumps(status))
        elif is_live:
            _watch(base, args.api_key, args.interval, status)
        else:
            width = shutil.get_terminal_size(_NO_TERMINAL).columns
            print("\n".join(view(status, width, _NO_TERMINAL[1], _wants_color())))
    except NoStatus as error:
        print(f"xpyd top: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # the usual way to leave
        pass
    return 0


def fetch(base: str, api_key: str | None) -> dict[str, Any]:
    """The proxy's `/status`. Raises NoStatus."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        request = urllib.request.Request(f"{base}/status", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            status = json.loads(answer.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        raise NoStatus(_complaint(base, error.code, api_key)) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NoStatus(f"no proxy answers at {base} ({reason}); --url names another") from None
    except ValueError:
        raise NoStatus(f"what answers at {base} is no xpyd proxy") from None
    if not isinstance(status, dict) or not {"instances", "recent", "topology"} <= status.keys():
        raise NoStatus(f"what answers at {base} is no xpyd proxy of this version")
    return status


def _complaint(base: str, code: int, api_key: str | None) -> str:
    if code == 401:
        if api_key:
            return f"{base} refuses the API key"
        return f"{base} needs an API key: --api-key, or XPYD_API_KEY in the environment"
    if code == 404:
        return f"{base} has no /status: it may be an instance, which has /metrics; ask the proxy"
    return f"{base}/status answers {code}"


def _watch(base: str, api_key: str | None, interval_s: float, status: dict[str, Any]) -> None:
    complaint = ""
    with Screen() as screen:
        while True:
            size = os.get_terminal_size(sys.stdout.fileno())  # not what LINES says: it changes
            screen.draw(view(status, size.columns, size.lines, _wants_color(), complaint))
            event = screen.wait(interval_s)
            if event == "quit":
                return
            if event == "resized":
                continue
            try:
                status, complaint = fetch(base, api_key), ""
            except NoStatus as error:
                complaint = str(error)


def _wants_color() -> bool:
    """https://no-color.org"""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
