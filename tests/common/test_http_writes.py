"""An answer's head goes out with what comes first behind it, over uvicorn's own cycle."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from common.http_writes import HeadWithBody

HEAD = {"type": "http.response.start", "status": 200, "headers": []}


class Recorder:
    """A transport that keeps what is written."""

    def __init__(self):
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data):
        self.writes.append(data)

    def is_closing(self):
        return self.is_closed

    def close(self):
        self.is_closed = True

    def resume_reading(self):
        pass


def body(data, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


def made(*, expects_100=False):
    recorder, log = Recorder(), logging.getLogger("test")
    transport = cast(Any, recorder)
    cycle = RequestResponseCycle(
        scope=cast(Any, {"type": "http", "method": "GET"}),
        transport=transport,
        flow=FlowControl(transport),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=expects_100,
        keep_alive=True,
        on_response=lambda: None,
    )
    cycle.transport = cast(Any, HeadWithBody(cycle))
    return recorder, cycle


def test_head_and_first_event_are_one_write_and_the_rest_goes_at_once():
    async def main():
        recorder, cycle = made()
        for message in (HEAD, body(b"one"), body(b"two"), body(b"three", more=False)):
            await cycle.send(cast(Any, message))
        first, second, third = recorder.writes
        assert first.startswith(b"HTTP/1.1 200 OK\r\n") and first.endswith(b"3\r\none\r\n")
        assert second == b"3\r\ntwo\r\n"
        assert third == b"5\r\nthree\r\n0\r\n\r\n"

    asyncio.run(main())


def test_a_head_without_a_body_goes_out_when_the_connection_closes():
    async def main():
        recorder, cycle = made()
        await cycle.send(cast(Any, HEAD))
        assert recorder.writes == []
        cycle.transport.close()
        assert recorder.writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
        assert recorder.is_closed

    asyncio.run(main())


def test_the_word_to_go_on_is_not_held():
    async def main():
        recorder, cycle = made(expects_100=True)
        cycle.message_event.set()
        await cycle.receive()
        assert recorder.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        await cycle.send(cast(Any, {**HEAD, "status": 204}))
        await cycle.send(cast(Any, body(b"", more=False)))
        assert recorder.writes[1].startswith(b"HTTP/1.1 204 ")

    asyncio.run(main())


def test_an_answered_request_needs_no_collector():
    async def main():
        recorder, cycle = made()
        await cycle.send(cast(Any, HEAD))
        await cycle.send(cast(Any, body(b"all", more=False)))
        gone = weakref.ref(cycle)
        gc.disable()
        try:
            del cycle
            assert gone() is None
        finally:
            gc.enable()

    asyncio.run(main())
