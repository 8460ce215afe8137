"""The processes that may be broken: those that a topology file names, and no others.

A pid is believed only while its command line is the one that the file says it was started with, so
a file from yesterday harms nobody.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from scripts.topology import write_topology

ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Target:
    name: str  # prefill-0, decode-1
    role: str
    url: str
    pid: int
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    log: str

    def is_running(self) -> bool:
        """Is that process still the one that was started as this?"""
        try:
            shown = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        return tuple(shown.decode(errors="replace").rstrip("\0").split("\0")) == self.argv

    def signal(self, number: int) -> None:
        """Raises ConfigError instead of touching a process that is somebody else's."""
        if not self.is_running():
            raise ConfigError(f"pid {self.pid} is not {self.name} of the topology file any more")
        os.kill(self.pid, number)


def read_targets(path: Path) -> list[Target]:
    """The instances in `topology.json` as it is now. Raises ConfigError."""
    contents = _read(path)
    try:
        return [
            Target(
                f"{role}-{number}",
                role,
                row["url"],
                int(row["pid"]),
                tuple(row["start"]),
                dict(row["env"]),
                row["cwd"],
                row["log"],
            )
            for role in ROLES
            for number, row in enumerate(contents[role])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a topology file: {error!r}") from None


def is_kept(path: Path) -> bool:
    """Does the launcher that wrote the file start again what has ended?"""
    return bool(_read(path).get("restart", False))


def link_control(path: Path) -> str:
    """Where the launcher that wrote the file takes orders for links; "" if it has none to break."""
    return str((_read(path).get("links") or {}).get("control", ""))


def start_again(target: Target, path: Path) -> subprocess.Popen[bytes]:
    """As the file says it was started; its new pid goes into the file. It outlives us, as the one
    before it would have."""
    with open(target.log, "ab") as log:
        process = subprocess.Popen(
            target.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | target.env,
            cwd=target.cwd,
            start_new_session=True,
        )
    contents = _read(path)
    number = int(target.name.rpartition("-")[2])
    contents[target.role][number]["pid"] = process.pid
    write_topology(path, contents)
    return process


def _read(path: Path) -> dict[str, Any]:
    try:
        contents: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return contents
