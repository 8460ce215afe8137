"""The engine's thread and the asyncio side, with a real thread and a real loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from common.engine import local
from common.engine.driver import EngineDriver
from common.engine.local import LocalEngine
from common.engine_client import ModelCard
from common.errors import ContextLengthExceeded, Unavailable, XpydError
from common.request import FinishReason
from tests.common.engine.standin_model import (
    StandInModel,
    greedy_answer,
    make_engine,
    make_request,
)

CARD = ModelCard("standin", 64, 0)


class Gate(StandInModel):
    """A model that waits, or fails, when told to."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.failures = 0
        self.entered = threading.Event()

    def forward(self, inputs, cache):
        self.entered.set()
        assert self.open.wait(5)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a bug in the model")
        return super().forward(inputs, cache)


def driving(test, *, model=None, **limits):
    """Run `await test(driver, engine)` with a started driver; then stop it and look for leaks."""

    async def main():
        engine = make_engine(model=model or StandInModel(), **limits)
        driver = EngineDriver(engine)
        driver.start(asyncio.get_running_loop())
        try:
            await test(driver, engine)
        finally:
            assert await driver.stop(5)
        ledger = engine.ledger()
        assert ledger["free"] + ledger["cached"] == ledger["total"]

    asyncio.run(main())


async def until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


async def answer(client, request):
    return [token async for event in client.generate(request) for token in event.token_ids]


def test_many_streams_at_once():
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        prompts = [[i, i + 1, i + 2] for i in range(20)]
        answers = await asyncio.gather(
            *(answer(client, make_request(f"r{i}", p, 10)) for i, p in enumerate(prompts))
        )
        assert answers == [greedy_answer(prompt, 10) for prompt in prompts]
        assert client._inboxes == {}

    driving(test)


def test_call_returns_or_raises():
    async def test(driver, engine):
        assert await driver.call(lambda e: e.load().total_blocks) == 64
        with pytest.raises(ContextLengthExceeded):
            await driver.call(lambda e: e.add(make_request("r", [1] * 70)))
        names = await driver.call(lambda e: threading.current_thread().name)
        assert names == "engine"

    driving(test)


def test_commands_run_in_order_before_the_next_step():
    async def test(driver, engine):
        seen = []
        for i in range(100):
            driver.post(lambda e, i=i: seen.append(i))
        await driver.call(lambda e: None)
        assert seen == list(range(100))

    driving(test)


def test_a_command_that_raises_harms_nobody(caplog):
    async def test(driver, engine):
        driver.post(lambda e: 1 / 0)
        assert await driver.call(lambda e: "alive") == "alive"

    driving(test)
    assert "ZeroDivisionError" in caplog.text


def test_an_idle_thread_sleeps_and_shows_that_it_lives():
    async def test(driver, engine):
        await driver.call(lambda e: None)
        used, seen = time.process_time(), driver.last_progress
        await until(lambda: driver.last_progress > seen)
        await asyncio.sleep(0.5)
        assert time.process_time() - used < 0.1
        assert driver.num_steps == 0

    driving(test)


def test_a_blocked_engine_does_not_spin():
    """Work, but all blocks are on loan: the thread sleeps until a command gives them back."""

    async def test(driver, engine):
        loan = await driver.call(lambda e: e.reserve(15))
        client = LocalEngine(driver, CARD)
        task = asyncio.ensure_future(answer(client, make_request("r", [1] * 20, 5)))
        await asyncio.sleep(0.3)
        assert driver.num_steps < 10
        assert not task.done()
        driver.post(lambda e: e.free(loan))
        assert await task == greedy_answer([1] * 20, 5)

    driving(test, num_blocks=16)


def test_a_step_that_raises_fails_its_requests_and_the_loop_goes_on(caplog):
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        model.failures = 1
        with pytest.raises(XpydError, match="internal error"):
            await answer(client, make_request("a", [1, 2], 3))
        assert driver.num_failed_steps == 1
        assert await answer(client, make_request("b", [1, 2], 3)) == greedy_answer([1, 2], 3)

    model = Gate()
    driving(test, model=model)
    assert "a bug in the model" in caplog.text


def test_a_listener_that_raises_does_not_deafen_the_others(caplog):
    async def test(driver, engine):
        driver.listeners.append(lambda result: 1 / 0)
        client = LocalEngine(driver, CARD)
        assert await answer(client, make_request("r", [4], 3)) == greedy_answer([4], 3)

    driving(test)
    assert "ZeroDivisionError" in caplog.text


def test_closing_the_stream_aborts():
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        stream = client.generate(make_request("r", [1, 2, 3], 50))
        await anext(stream)
        await stream.aclose()
        load = await driver.call(lambda e: e.load())
        assert load.num_running == 0
        assert client._inboxes == {}

    driving(test)


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.01])
def test_cancelling_at_any_time_aborts(delay_s):
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        task = asyncio.ensure_future(answer(client, make_request("r", [1, 2, 3], 60)))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await driver.call(lambda e: e.has_work())) is False
        assert client._inboxes == {}

    driving(test)


def test_the_same_id_twice_is_refused_and_the_first_goes_on():
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        first = client.generate(make_request("r", [1, 2, 3], 6))
        tokens = list((await anext(first)).token_ids)
        with pytest.raises(XpydError, match="already"):
            await answer(client, make_request("r", [1, 2, 3], 6))
        tokens += [token async for event in first for token in event.token_ids]
        assert tokens == greedy_answer([1, 2, 3], 6)

    driving(test)


def test_events_of_others_are_not_ours():
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        seen = []
        driver.listeners.append(lambda result: seen.extend(result.events))
        await driver.call(lambda e: e.add(make_request("theirs", [1], 2)))
        await until(lambda: seen and seen[-1].finish_reason is FinishReason.LENGTH)
        assert client._inboxes == {}

    driving(test)


def test_stop_ends_running_requests_with_an_error():
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        task = asyncio.ensure_future(answer(client, make_request("r", [1], 60)))
        await until(model.entered.is_set)
        model.open.clear()
        stopping = asyncio.ensure_future(driver.stop(5))
        await asyncio.sleep(0.02)
        assert not client.is_ready()
        model.open.set()
        assert await stopping
        with pytest.raises(Unavailable):
            await task
        with pytest.raises(Unavailable):
            await driver.call(lambda e: None)
        driver.post(lambda e: None)
        assert client.models() == []

    model = Gate()
    driving(test, model=model)


def test_stop_keeps_its_deadline_when_a_step_hangs():
    async def test(driver, engine):
        driver.post(lambda e: e.add(make_request("r", [1], 5)))
        model.open.clear()
        await until(model.entered.is_set)
        began = time.monotonic()
        assert await driver.stop(0.1) is False
        assert time.monotonic() - began < 6
        model.open.set()

    model = Gate()
    driving(test, model=model)


def test_the_reader_of_an_engine_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch):
    async def test(driver, engine):
        client = LocalEngine(driver, CARD)
        monkeypatch.setattr(local, "MAX_SILENCE_S", 0.3)
        monkeypatch.setattr(local, "WATCH_S", 0.05)
        model.open.clear()
        task = asyncio.ensure_future(answer(client, make_request("r", [1], 4)))
        await until(model.entered.is_set)
        with pytest.raises(Unavailable, match="does not answer"):
            await task
        model.open.set()
        assert (await driver.call(lambda e: e.has_work())) is False
        assert client._inboxes == {}

    model = Gate()
    driving(test, model=model)


def test_one_wake_up_of_the_loop_per_step():
    async def test(driver, engine):
        calls = []
        driver.listeners.append(lambda result: calls.append(len(result.events)))
        async_client = LocalEngine(driver, CARD)
        model.open.clear()
        tasks = [
            asyncio.ensure_future(answer(async_client, make_request(f"r{i}", [i], 4)))
            for i in range(6)
        ]
        await asyncio.sleep(0.05)
        model.open.set()
        await asyncio.gather(*tasks)
        assert len(calls) <= 4 + 2
        assert max(calls) >= 5

    model = Gate()
    driving(test, model=model)
