"""What a proxy believes after the reports is what the engine's cache can find."""

from __future__ import annotations

import asyncio
import time

import pytest

from common.engine.driver import EngineDriver
from common.engine.prefix import short_hash
from common.instance.prefix_report import PrefixReports
from proxy.prefix_follower import PrefixFollower
from tests.common.engine.standin_model import make_engine, make_request


class Proxies:
    """Two followers at the other end; `deaf` loses what is sent."""

    def __init__(self):
        self.followers = {b"a": PrefixFollower(), b"b": PrefixFollower()}
        for follower in self.followers.values():
            assert follower.due({"i": "x"}, 0.0) == ["i"]
        self.deaf: set[bytes] = set()
        self.messages = []

    def send(self, peer, message):
        self.messages.append((peer, message))
        if peer not in self.deaf:
            self.followers[peer].came("i", message, time.monotonic())
        return peer not in self.deaf

    def holds(self, peer):
        return set(self.followers[peer].index._holders)


async def until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def run_prompts(driver, prompts):
    ended: list[str] = []

    def on_step(result):
        ended.extend(event.request_id for event in result.events if event.finish_reason)

    driver.listeners.append(on_step)
    for number, prompt in enumerate(prompts):
        request = make_request(f"r{number}-{prompt[0]}", prompt, 2)
        await driver.call(lambda engine, request=request: engine.add(request))
    await until(lambda: len(ended) == len(prompts))
    driver.listeners.remove(on_step)


async def held(driver):
    return set(map(short_hash, await driver.call(lambda engine: engine._pool.digests())))


def reporting(body, num_blocks=16, **options):
    async def run():
        driver = EngineDriver(make_engine(num_blocks=num_blocks))
        driver.start(asyncio.get_running_loop())
        proxies = Proxies()
        reports = PrefixReports(driver, proxies.send, "x", **options)
        try:
            await body(driver, proxies, reports)
        finally:
            await reports.close()
            await driver.stop()

    asyncio.run(run())


@pytest.mark.parametrize("at_most", [8192, 3])
def test_followers_end_up_with_the_truth(at_most):
    async def body(driver, proxies, reports):
        await run_prompts(driver, [[i] * 12 for i in range(3)])
        reports.watch(b"a")
        await until(lambda: len(proxies.holds(b"a")) == 9)
        await run_prompts(driver, [[i] * 13 for i in range(3, 12)])  # evicts
        reports.watch(b"b")
        truth = await held(driver)
        await until(lambda: proxies.holds(b"a") == truth == proxies.holds(b"b"))
        assert all(len(m.added) + len(m.removed) <= at_most for _, m in proxies.messages)
        assert [f.num_resets for f in proxies.followers.values()] == [1, 1]

    reporting(body, max_hashes=at_most)


def test_a_lost_message_is_noticed_at_the_next_beat_and_asked_for_again():
    async def body(driver, proxies, reports):
        reports.watch(b"a")
        await until(lambda: proxies.followers[b"a"].num_followed)
        proxies.deaf.add(b"a")
        count = len(proxies.messages)
        await run_prompts(driver, [[1] * 12])
        await until(lambda: any(m.added for _, m in proxies.messages[count:]))
        proxies.deaf.clear()
        await until(lambda: not proxies.followers[b"a"].num_followed)
        assert proxies.followers[b"a"].due({"i": "x"}, 0.1) == ["i"]
        reports.watch(b"a")
        await until(lambda: len(proxies.holds(b"a")) == 3)

    reporting(body, beat_s=0.2, min_report_s=0.0)


def test_asking_in_a_loop_is_answered_twice_a_second():
    async def body(driver, proxies, reports):
        for _ in range(100):
            reports.watch(b"a")
            await asyncio.sleep(0.002)
        assert sum(message.is_reset for _, message in proxies.messages) == 1

    reporting(body)


@pytest.mark.parametrize("always", [False, True])
def test_the_log_ends_with_its_last_reader(always):
    async def body(driver, proxies, reports):
        reports.watch(b"a")
        reports.watch(b"b")
        await until(lambda: len(reports._next_seq) == 2)
        reports.forget(b"a")
        assert await driver.call(lambda engine: engine._prefix_log is not None)
        reports.forget(b"b")
        assert await driver.call(lambda engine: engine._prefix_log is not None) is always
        count = len(proxies.messages)
        await run_prompts(driver, [[1] * 12])
        await asyncio.sleep(0.25)
        assert len(proxies.messages) == count

    reporting(body, always=always)
