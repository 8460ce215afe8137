"""`xpyd chat`: talk to a server from a terminal. Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

TIMEOUT_S = 120.0


def run(args: argparse.Namespace) -> int:
    base = args.url.rstrip("/").removesuffix("/v1")
    try:
        model = args.model or _first_model(base, args.api_key)
    except _ServerError as error:
        print(f"xpyd chat: {error}", file=sys.stderr)
        return 1
    print(f"{model} at {base}; Ctrl-D leaves", file=sys.stderr)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    while (question := _ask()) is not None:
        if not question.strip():
            continue
        messages.append({"role": "user", "content": question})
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "stream": True,
        }
        messages.append({"role": "assistant", "content": _answer(base, body, args.api_key)})
    return 0


class _ServerError(Exception):
    pass


def _ask() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _answer(base: str, body: dict[str, Any], api_key: str | None) -> str:
    """Print the answer as it comes; what came is returned, whatever ended it."""
    pieces: list[str] = []
    try:
        for piece in _stream(base, body, api_key):
            pieces.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    except _ServerError as error:
        print(f"[{error}]", end="")
    print()
    return "".join(pieces)


def _stream(base: str, body: dict[str, Any], api_key: str | None) -> Iterator[str]:
    with _open(f"{base}/v1/chat/completions", api_key, body) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise _ServerError(event["error"]["message"])
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


def _first_model(base: str, api_key: str | None) -> str:
    with _open(f"{base}/v1/models", api_key) as answer:
        models = json.load(answer)["data"]
    if not models:
        raise _ServerError("the server lists no model yet")
    return str(models[0]["id"])


def _open(url: str, api_key: str | None, body: dict[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        try:
            message = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = error.reason
        raise _ServerError(f"{error.code}: {message}") from None
    except (urllib.error.URLError, OSError) as error:
        raise _ServerError(f"cannot reach the server: {error}") from None
