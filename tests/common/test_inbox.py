"""A ZeroMQ socket in the event loop: nothing is overlooked, nobody is starved."""

from __future__ import annotations

import asyncio
import time

import zmq
import zmq.asyncio

from common.inbox import BURST, Inbox, plain_socket


class Pair:
    """Two sockets in one process; `got` is what reached the first."""

    def __init__(self, pause_s=0.0):
        self._context = zmq.asyncio.Context()
        name = "inproc://inbox"  # in this context
        self.near, self.far = (plain_socket(self._context, zmq.PAIR) for _ in range(2))
        for each in (self.near, self.far):
            each.setsockopt(zmq.RCVHWM, 0)
            each.setsockopt(zmq.SNDHWM, 0)
        self.near.bind(name)
        self.far.connect(name)
        self.got: list[bytes] = []
        self.inbox = Inbox(self.near, self.deliver, pause_s)

    def deliver(self, frames):
        self.got += frames

    async def until(self, count, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count}"
            await asyncio.sleep(0.001)

    def close(self):
        self.inbox.close()
        self.near.close(linger=0)
        self.far.close(linger=0)
        self._context.term()


def run(scenario, **options):
    async def main():
        pair = Pair(**options)
        try:
            await scenario(pair)
        finally:
            pair.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_comes_while_we_send_is_not_overlooked():
    """Sending reads the socket's events, and with them the word that there is mail."""

    async def scenario(pair):
        for number in range(500):
            pair.far.send(b"%d" % number)
            if number % 3:
                assert pair.inbox.send((b"answer",))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await pair.until(500)
        assert pair.got == [b"%d" % number for number in range(500)]

    run(scenario)


def test_a_flood_leaves_others_their_turn_and_comes_whole():
    async def scenario(pair):
        turns = []
        for number in range(10 * BURST):
            pair.far.send(b"%d" % number)
        while len(pair.got) < 10 * BURST:
            turns.append(len(pair.got))
            await asyncio.sleep(0)
        assert len(turns) >= 10
        assert all(after - before <= BURST for before, after in zip(turns, turns[1:], strict=False))

    run(scenario)


def test_it_rests_as_long_as_it_was_told_and_loses_nothing():
    async def scenario(pair):
        for _ in range(3 * BURST):
            pair.far.send(b"x")
        began = time.monotonic()
        await pair.until(3 * BURST)
        assert time.monotonic() - began >= 2 * 0.05  # two rests lie between three bursts

    run(scenario, pause_s=0.05)


def test_an_answer_from_inside_a_delivery():
    async def scenario(pair):
        answers = []

        def deliver(frames):
            pair.got += frames
            answers.append(pair.inbox.send((b"seen " + frames[0],)))

        pair.inbox._deliver = deliver
        for number in range(100):
            pair.far.send(b"%d" % number)
        await pair.until(100)
        assert answers == [True] * 100
        assert [pair.far.recv() for _ in range(100)] == [b"seen %d" % n for n in range(100)]

    run(scenario)


def test_closed_it_is_silent():
    async def scenario(pair):
        pair.far.send(b"before")
        await pair.until(1)
        pair.inbox.close()
        pair.far.send(b"after")
        await asyncio.sleep(0.05)
        assert pair.got == [b"before"]

    run(scenario)
