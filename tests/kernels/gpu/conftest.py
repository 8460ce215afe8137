"""The Triton faces run here under Triton's interpreter: numpy, one program after the other.

It computes bfloat16 wrongly, so these tests use float32 and float16. Where there is a GPU,
scripts/gpu_check.py holds the compiled kernels against the same references.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(autouse=True)
def interpreter():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are compiled on this machine: scripts/gpu_check.py tests them")


@pytest.fixture(autouse=True)
def batch_invariant_off():
    from kernels.gpu.choice import set_batch_invariant

    yield
    set_batch_invariant(False)
