"""Every Triton kernel compiles to machine code, which needs no GPU.

In a process of its own, as the interpreter takes the place of the compiler in this one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])  # A100, H100/H200
def test_gpu_kernels_compile(capability):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), capability],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 10, done.stdout
    assert not [line for line in lines if "tensor cores" in line and "no tensor cores" in line]
