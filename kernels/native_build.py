"""Compile the C++ of `kernels/native` once per machine, compiler and source; keep it in a cache.

Knows compilers and files; knows nothing of what is in the library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-pthread"),
    # A product and a sum are fused where the source says so and nowhere else; see native/simd.h.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing"),
]
_COMPILE_TIMEOUT_S = 180.0


class BuildError(Exception):
    """There is no library; the message says why in one line."""


def build(cache: Path | None = None) -> Path:
    """Path of the shared library, compiled now if it is not in the cache. Raises BuildError.

    Processes that start together compile once: the others wait for the lock and find the file.
    """
    compiler = find_compiler()
    directory = cache or cache_directory()
    path = directory / f"kernels-{_key(compiler)}.so"
    if not path.exists():
        with _locked(directory / "build.lock"):
            if not path.exists():
                _compile(compiler, path)
    return path


def find_compiler() -> list[str]:
    """$CXX, else the first of the usual names that is there."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise BuildError("no C++ compiler: neither $CXX nor g++, clang++, c++")


def cache_directory() -> Path:
    """A directory that only this user can write to, as code is loaded from it."""
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path(os.path.expanduser("~")) / ".cache"
    private = Path(tempfile.gettempdir()) / f"xpyd-{os.getuid()}"
    for directory in (home / "xpyd", private):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
        except OSError:
            continue
        is_private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if status.st_uid == os.getuid() and is_private and os.access(directory, os.W_OK):
            return directory
    raise BuildError(f"no cache directory: neither {home / 'xpyd'} nor {private} is ours alone")


def _key(compiler: list[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for text in (*compiler, _version(compiler), *FLAGS, platform.machine(), _cpu_flags()):
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()[:24]


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"], timeout_s=30.0)


def _cpu_flags() -> str:
    """What -march=native depends on; a home directory may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "model name", "Features")
    return "\n".join(next((x for x in lines if x.startswith(name)), "") for name in wanted)


def _compile(compiler: list[str], path: Path) -> None:
    """Every source at once, then the link; the result takes its place whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as scratch:

        def compile_one(source: Path) -> str:
            target = f"{scratch}/{source.stem}.o"
            command = [*compiler, *FLAGS, "-c", str(source), "-o", target]
            _run(command, timeout_s=_COMPILE_TIMEOUT_S)
            return target

        with ThreadPoolExecutor() as threads:
            objects = list(threads.map(compile_one, sorted(SOURCES.glob("*.cpp"))))
        library = f"{scratch}/library.so"
        link = [*compiler, *FLAGS, "-shared", *objects, "-o", library]
        _run(link, timeout_s=_COMPILE_TIMEOUT_S)
        os.replace(library, path)


def _run(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise BuildError(f"{command[0]} exited with {done.returncode}: {lines[0]}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock goes with the process, so nobody waits for longer than one compile."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
