"""Work that somebody else may end, in the task of whoever wants its result."""

from __future__ import annotations

import asyncio

import pytest

from common.api.disconnect import ClientGone, Interruption, until_disconnect


class Late(Exception):
    pass


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_it_ends_the_work_and_waits_for_it_to_clean_up():
    async def scenario():
        interruption, cleaned = Interruption(), []

        async def work():
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                cleaned.append(True)

        asyncio.get_running_loop().call_later(0.01, interruption.end, Late())
        with pytest.raises(Late):
            await interruption.run(work())
        assert cleaned == [True]
        await asyncio.sleep(0)  # and the task is not cancelled any more

    run(scenario())


def test_work_that_is_over_is_not_touched():
    async def scenario():
        interruption = Interruption()

        async def work():
            return 7

        assert await interruption.run(work()) == 7
        interruption.end(Late())
        await asyncio.sleep(0)
        with pytest.raises(Late):
            await interruption.run(work())

    run(scenario())


def test_who_is_cancelled_from_outside_stays_cancelled():
    async def scenario():
        begun = asyncio.Event()

        async def work():
            begun.set()
            await asyncio.sleep(3600)

        task = asyncio.ensure_future(Interruption().run(work()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


def test_a_hang_up_ends_the_work_but_an_answer_wins():
    async def scenario():
        left = asyncio.Event()

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def answer():
            left.set()
            return 7

        async def endless():
            await asyncio.sleep(3600)

        assert await until_disconnect(receive, answer()) == 7
        with pytest.raises(ClientGone):
            await until_disconnect(receive, endless())

        async def watch():
            return Late()

        left.clear()
        with pytest.raises(Late):
            await until_disconnect(receive, endless(), watch())

    run(scenario())
