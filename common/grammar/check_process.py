"""The waiting side of `checker.py`: ask whether a constraint compiles, kill what takes too long.

Blocking: for a thread that has nothing else to do. Started with the first question, and again after
each kill.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import BadRequest, XpydError

START_S = 60.0  # Python and a vocabulary on a busy machine
ANSWER_S = 2.0

_ROOT = str(Path(__file__).parent.parent.parent)


class CheckTimeout(BadRequest):
    """It may be the machine that was slow: not to be remembered."""


class CheckProcess:
    def __init__(self, opening: Callable[[], dict[str, Any]]) -> None:
        """`opening`: the first line for the process, see checker.py."""
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def grammar_of(self, kind: str, text: str) -> str:
        """The constraint as a grammar that is known to compile. Raises BadRequest."""
        if self._process is None:
            self._start()
        answer = self._ask({"kind": kind, "text": text}, ANSWER_S)
        if answer is None:
            self.close()
            raise CheckTimeout(f"compiling it takes too much memory or over {ANSWER_S:g} s")
        if "error" in answer:
            raise BadRequest(str(answer["error"]))
        return str(answer["grammar"])

    def kill(self) -> None:
        """From any thread: whoever waits for an answer gets none."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Idempotent."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.grammar.checker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # panics of the library, which quote what clients sent
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
        )
        answer = self._ask(self._opening(), START_S)
        if answer is None or "error" in answer:
            self.close()
            if answer is not None:
                raise BadRequest(str(answer["error"]))
            raise XpydError("the process that checks constraints does not start")

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """None: no answer in time, or it died."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + timeout_s
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return None
        output = process.stdout.fileno()
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                return None
            data = os.read(output, 1 << 16)
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found
