"""The native code compiled for lesser machines: right and row-invariant there too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHECK = """
import sys, torch
from kernels import native_library
from kernels.attention import paged_attention, paged_attention_torch
from kernels.linear import linear, linear_torch, pack, pack_torch
from kernels.noise import gumbel, gumbel_torch
from kernels.norm import rms_norm, rms_norm_torch

assert native_library.status().reason == sys.argv[1], native_library.status()
torch.manual_seed(0)

def close(a, b):
    eps = torch.finfo(a.dtype).eps
    torch.testing.assert_close(a, b, rtol=8 * eps, atol=max(8 * eps, 1e-5))

for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for k, n, how in ((64, 40, None), (33, 17, None), (64, 40, "int8"), (33, 17, "int8")):
        x, w, b = (torch.randn(*s).to(dtype) for s in ((37, k), (n, k), (n,)))
        packed = pack(w * k**-0.5, b, how)
        out = linear(x, packed)
        close(out, linear_torch(x, pack_torch(w * k**-0.5, b, how), dtype))
        for m in (1, 2, 5, 6, 13, 14, 36):
            assert torch.equal(linear(x[37 - m:], packed), out[37 - m:])
    x, weight = torch.randn(5, 75).to(dtype) * 70, torch.randn(75).to(dtype)
    x[0, 0], x[1, 1] = 0.0, 6e-8
    close(rms_norm(x, weight, 1e-6), rms_norm_torch(x, weight, 1e-6))

    q, cache = torch.randn(90, 6, 40).to(dtype), torch.randn(13, 2, 2, 7, 40).to(dtype)
    table = torch.randperm(13, dtype=torch.int32)[None]
    def attend(face, start, end, window):
        cu, context = torch.tensor([0, end - start]).int(), torch.tensor([end]).int()
        caches = cache[:, 0], cache[:, 1]
        return face(q[start:end], *caches, table, cu, context, 0.3, window, 20.0)
    for window in (None, 30):
        whole = attend(paged_attention, 0, 90, window)
        close(whole, attend(paged_attention_torch, 0, 90, window))
        for p in (0, 1, 40, 63, 64, 89):
            assert torch.equal(attend(paged_attention, p, p + 1, window)[0], whole[p])

seeds, positions = torch.tensor([-3, 2**62]), torch.tensor([7, 2**33])
assert torch.equal(gumbel(seeds, positions, 1001), gumbel_torch(seeds, positions, 1001))
"""


def cpu_flags():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.mark.parametrize(
    ("march", "isa", "needs"),
    [
        ("x86-64-v4", "avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
        ("x86-64-v3", "avx2", {"avx2", "fma", "f16c"}),
        ("x86-64", "portable", {"sse2"}),
    ],
)
def test_lesser_machine(tmp_path, march, isa, needs):
    if not needs <= cpu_flags():
        pytest.skip(f"this CPU has no {isa}")
    compiler = tmp_path / "cxx"
    # Unoptimised: the same steps in the same order, compiled in a third of the time.
    march_flag = f'args=("${{@/-march=native/-march={march}}}")'
    compiler.write_text(f'#!/bin/bash\n{march_flag}\nexec g++ "${{args[@]/-O3/-O0}}"\n')
    compiler.chmod(0o755)
    env = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", CHECK, isa],
        cwd=ROOT,
        env={**os.environ, **env},
        check=True,
        timeout=120,
    )
