"""Which face is active and why: real compilers, real processes, a cache of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import native_library
from kernels.native_build import BuildError, cache_directory, find_compiler

ROOT = Path(__file__).parents[2]

REPORT = """
import json, torch
from kernels import native_library
from kernels.linear import linear, pack
out = linear(torch.ones(3, 5), pack(torch.ones(4, 5)))
status = native_library.status()
print(json.dumps([status.face, status.reason, str(status.path), out.sum().item()]))
"""


def start(cache, **env):
    merged = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(
        [sys.executable, "-c", REPORT],
        cwd=ROOT,
        env=merged,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report(process):
    out, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    face, reason, path, total = json.loads(out)
    assert total == 60.0  # right answers, whichever face
    return face, reason, path, log


def script(path, body):
    path.write_text("#!/bin/bash\n" + body)
    path.chmod(0o755)
    return str(path)


def test_native_is_active_where_there_is_a_compiler():
    try:
        find_compiler()
    except BuildError:
        pytest.skip("no C++ compiler")
    assert native_library.status().face == "native", native_library.status().reason


def test_failing_compiler_falls_back_and_says_so_once(tmp_path):
    body = '[ "$1" = --version ] && echo 1.0 && exit\necho "x.cpp: error: no luck" >&2; exit 3'
    face, reason, _, log = report(start(tmp_path, CXX=script(tmp_path / "cxx", body)))
    assert face == "torch"
    assert "exited with 3: x.cpp: error: no luck" in reason
    assert log.count("no luck") == 1
    assert [p.name for p in (tmp_path / "xpyd").iterdir()] == ["build.lock"]


def test_missing_compiler_falls_back(tmp_path):
    face, reason, _, _ = report(start(tmp_path, CXX="/nonexistent/c++"))
    assert face == "torch"
    assert "/nonexistent/c++" in reason


def test_compiler_that_writes_garbage_falls_back(tmp_path):
    body = 'for last; do :; done; [ "$last" = --version ] || echo not a library > "$last"'
    face, reason, _, _ = report(start(tmp_path, CXX=script(tmp_path / "cxx", body)))
    assert face == "torch"
    assert reason


def test_switched_off_by_the_environment(tmp_path):
    face, reason, _, _ = report(start(tmp_path, XPYD_NATIVE="0"))
    assert (face, reason) == ("torch", "switched off by XPYD_NATIVE=0")
    assert not list(tmp_path.iterdir())


def test_two_processes_at_once_compile_once(tmp_path):
    compiler = " ".join(find_compiler())
    counter = tmp_path / "compiles"
    log = f'case "$*" in *-shared*) echo one >> {counter};; esac'
    body = f'{log}\nexec {compiler} "$@" -O0'  # the last -O counts; this test is about the lock
    wrapper = script(tmp_path / "cxx", body)
    processes = [start(tmp_path / "cache", CXX=wrapper) for _ in range(2)]
    reports = [report(process) for process in processes]
    assert [r[0] for r in reports] == ["native", "native"]
    assert reports[0][2] == reports[1][2]
    assert counter.read_text().split() == ["one"]
    assert len(list((tmp_path / "cache/xpyd").glob("*.so"))) == 1


def test_cache_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    shared = tmp_path / "shared/xpyd"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_directory().parent == tmp_path
    assert cache_directory().stat().st_mode & 0o777 == 0o700
