"""The native thread pool: shared by Python threads, asleep when idle, whole again after a fork."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from kernels import native_library
from kernels.linear import linear, pack

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native library")


@pytest.fixture(autouse=True)
def restore_threads():
    before = native_library.num_threads()
    yield
    native_library.set_num_threads(before)


def test_many_python_threads_and_a_changing_number_of_workers():
    x, packed = torch.randn(9, 256), pack(torch.randn(2048, 256))
    native_library.set_num_threads(3)
    expected = linear(x, packed)
    wrong = []

    def work():
        for _ in range(60):
            if not torch.equal(linear(x, packed), expected):
                wrong.append(threading.get_ident())

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for i in range(20):
        native_library.set_num_threads(1 + i % 4)
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


def test_idle_workers_use_no_cpu():
    x, packed = torch.randn(9, 256), pack(torch.randn(2048, 256))
    native_library.set_num_threads(4)
    for _ in range(10):
        linear(x, packed)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1


FORK = """
import os, torch
from kernels import native_library
from kernels.linear import linear, pack
native_library.set_num_threads(3)
x, packed = torch.randn(9, 256), pack(torch.randn(2048, 256))
expected = linear(x, packed)
child = os.fork()
same = all(torch.equal(linear(x, packed), expected) for _ in range(20))
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_forked_child_computes_too():
    root = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", FORK], cwd=root, env=env, check=True, timeout=60)
