"""Which shape of a kernel is the fastest on this GPU: measured once, then read from a file.

A shape is a frozen dataclass of numbers; a case is what the best shape depends on (head size, rows,
...). Nothing is measured while a request runs: what nobody has tuned runs in the kernel's default
shape. Knows no kernels.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton

log = logging.getLogger(__name__)

ShapeT = TypeVar("ShapeT")
Case = tuple[int | str, ...]

_chosen: dict[tuple[str, Case], Any] = {}  # of this process: it runs on one kind of GPU


def bucket(count: int) -> int:
    """Sizes up to the next power of two share a shape."""
    return 1 << max(count - 1, 0).bit_length()


def chosen(kernel: str, case: Case, default: ShapeT) -> ShapeT:
    """The shape that was tuned for this case, or the default."""
    found: ShapeT = _chosen.get((kernel, case), default)
    return found


def forget() -> None:
    """Back to the defaults."""
    _chosen.clear()


class Tuner:
    """Chooses shapes, and keeps what it chose in a file that later processes read."""

    def __init__(self, path: Path, seconds: Callable[[Callable[[], object]], float]) -> None:
        """
        path:     of the file; made when there is something to keep
        seconds:  measures one launch
        """
        self._path = path
        self._seconds = seconds
        self._known = _read(path)
        self.num_measured = 0

    def tune(
        self,
        kernel: str,
        case: Case,
        candidates: Sequence[ShapeT],
        launch: Callable[[ShapeT], object],
    ) -> None:
        """From now on `chosen` answers with the fastest of the candidates.

        A candidate that does not compile or fit is passed over; if none does, the default stays.
        """
        name = f"{kernel} {' '.join(map(str, case))}"
        known = self._known.get(name)
        best = next((c for c in candidates if list(astuple(c)) == known), None)  # type: ignore[call-overload]
        if best is None:
            timed = [(self._time(launch, candidate), i) for i, candidate in enumerate(candidates)]
            self.num_measured += 1
            fastest, index = min(timed)
            if fastest == float("inf"):
                return
            best = candidates[index]
            self._known[name] = list(astuple(best))  # type: ignore[call-overload]
        _chosen[(kernel, case)] = best

    def _time(self, launch: Callable[[ShapeT], object], candidate: ShapeT) -> float:
        try:
            return self._seconds(lambda: launch(candidate))
        except (RuntimeError, triton.TritonError) as error:
            log.debug("%s does not run here: %s", candidate, str(error).partition("\n")[0])
            return float("inf")

    def save(self) -> None:
        """Keep what was measured, beside what other processes have kept meanwhile."""
        if not self.num_measured:
            return
        known = {**_read(self._path), **self._known}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent)
            with open(handle, "w") as file:
                json.dump(known, file, indent=1, sort_keys=True)
            os.replace(name, self._path)
        except OSError as error:
            log.warning("the tuned kernel shapes cannot be kept in %s: %s", self._path, error)


def device_file() -> Path:
    """Of the current GPU and this triton: other ones want other shapes."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = torch.cuda.get_device_name().replace("/", "-").replace(" ", "-")
    return Path(root) / "xpyd" / "tuned" / f"{name}-triton-{triton.__version__}.json"


def launch_seconds(launch: Callable[[], object]) -> float:
    """Median over some milliseconds of launches."""
    return float(triton.testing.do_bench(launch, warmup=3, rep=12, return_mode="median")) / 1e3


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
