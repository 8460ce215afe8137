"""kill -9 of the proxy: its streams break, its work stops, a new one serves. (What may happen to
instances, and nobody notices, is in `test_fault_suite.py`.)"""

import asyncio
import os
import signal
import time

import pytest

from tests.e2e.cluster import cluster
from tests.e2e.streams import outcome, until_flowing

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "2048", "--kv-cache-memory", "64MiB"),
    *("--max-num-batched-tokens", "64", "--kv-lease-s", "4"),
)
PROMPT = [i % 1500 for i in range(300)]
LONG_ANSWER = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}


def test_a_dead_proxy_stops_its_work_and_a_new_one_serves(tmp_path):
    async def body():
        async with cluster(tmp_path, prefill=1, decode=1, arguments=ARGUMENTS) as made:
            expected = await made.generate(made.url, PROMPT, max_tokens=8, temperature=0)
            tokens: list[list[int]] = [[] for _ in range(3)]
            streams = [asyncio.create_task(outcome(made, PROMPT, LONG_ANSWER, t)) for t in tokens]
            await until_flowing(streams, tokens)
            os.kill(made.proxy.pid, signal.SIGKILL)
            done, pending = await asyncio.wait(streams, timeout=60)
            assert not pending, made.logs()
            for seen, how in [task.result() for task in done]:
                assert len(seen) < LONG_ANSWER["max_tokens"]
                assert how.startswith(("broken", "silent end")), how
            took_s = await made.at_rest()
            made.start_proxy()
            began = time.monotonic()
            await made.healthy(made.proxy)
            await made.ready_instances(2)
            print(f"at rest after {took_s:.1f} s, served after {time.monotonic() - began:.1f} s")
            assert await made.generate(made.url, PROMPT, max_tokens=8, temperature=0) == expected
            assert [child.process.poll() for child in made.instances] == [None, None]

    asyncio.run(body())
