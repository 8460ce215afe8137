from __future__ import annotations

import asyncio
from time import perf_counter, process_time

import pytest

from benchmarks.client_cost import watch_client
from benchmarks.dataset import BenchRequest
from benchmarks.runner import RunLog, run_fixed_concurrency, run_open_loop
from benchmarks.sample import Sample

REQUESTS = [BenchRequest(index, (1, 2, 3), 3, 4) for index in range(12)]


class Server:
    """Takes `busy_s` for each request and counts how many it has at once."""

    def __init__(self, busy_s: float) -> None:
        self.busy_s = busy_s
        self.now = 0
        self.most = 0

    async def send(self, request: BenchRequest, due_s: float, released_s: float) -> Sample:
        sent_s = perf_counter()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.busy_s)
        finally:
            self.now -= 1
        end_s = perf_counter()
        return Sample(request.index, "", due_s, released_s, sent_s, end_s, (end_s,))


def test_open_loop_does_not_wait_for_answers():
    server, log = Server(0.4), RunLog()
    times = [0.01 * index for index in range(12)]
    asyncio.run(run_open_loop(REQUESTS, times, server.send, log))
    assert server.most == 12
    assert len(log.samples) == log.num_started == 12
    assert log.ended_s - log.started_s >= 0.5
    for sample in log.samples:
        assert sample.due_s - log.started_s == pytest.approx(times[sample.index])


def test_nothing_goes_out_before_it_is_due():
    server, log = Server(0.0), RunLog()
    asyncio.run(run_open_loop(REQUESTS, [0.0037 * i for i in range(12)], server.send, log))
    assert all(sample.sent_s >= sample.released_s >= sample.due_s for sample in log.samples)


def test_waiting_behind_a_limit_counts():
    """One place, 50 ms each, all due at once: request k ends after (k + 1) × 50 ms."""
    server, log = Server(0.05), RunLog()
    asyncio.run(run_open_loop(REQUESTS[:5], [0.0] * 5, server.send, log, max_concurrency=1))
    assert server.most == 1
    for sample in log.samples:
        assert sample.e2el_s >= 0.05 * (sample.index + 1)
        assert sample.queue_s >= 0.05 * sample.index - 0.01


def test_fixed_concurrency_is_kept_and_never_passed():
    server, log = Server(0.02), RunLog()
    asyncio.run(run_fixed_concurrency(REQUESTS, 3, server.send, log))
    assert server.most == 3
    assert sorted(sample.index for sample in log.samples) == list(range(12))


def test_fixed_concurrency_with_more_places_than_requests():
    server, log = Server(0.0), RunLog()
    asyncio.run(run_fixed_concurrency(REQUESTS, 99, server.send, log))
    assert len(log.samples) == 12


def test_every_end_is_told_at_once():
    seen = []
    log = RunLog(on_done=lambda sample: seen.append(sample.index))
    asyncio.run(run_fixed_concurrency(REQUESTS, 1, Server(0.0).send, log))
    assert seen == list(range(12))


@pytest.mark.parametrize("is_open", [True, False])
def test_cancelling_keeps_what_has_ended_and_leaves_nothing_running(is_open):
    server, log = Server(0.1), RunLog()
    if is_open:
        run = run_open_loop(REQUESTS, [0.1 * i for i in range(12)], server.send, log)
    else:
        run = run_fixed_concurrency(REQUESTS, 2, server.send, log)

    async def cancel_soon():
        task = asyncio.create_task(run)
        await asyncio.sleep(0.35)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(cancel_soon()) == 1
    assert server.now == 0
    assert 1 <= len(log.samples) < log.num_started < 12
    assert log.ended_s > log.started_s


def test_a_bug_in_send_is_not_swallowed():
    async def broken(request, due_s, released_s):
        raise KeyError("ours")

    with pytest.raises(KeyError):
        asyncio.run(run_open_loop(REQUESTS, [0.0] * 12, broken, RunLog()))


def test_a_blocked_event_loop_is_seen():
    async def block():
        async with watch_client() as watch:
            started_s = perf_counter()
            await asyncio.sleep(0.05)
            end_s = process_time() + 0.3
            while process_time() < end_s:
                pass
            await asyncio.sleep(0.05)
        return watch.cost, perf_counter() - started_s

    cost, elapsed_s = asyncio.run(block())
    assert cost is not None
    assert cost.loop_lag_max_s >= 0.25
    assert cost.cpu_fraction >= 0.3 / elapsed_s * 0.99
