"""Responses that are being made, and those that are kept: who drives them, who may find them.

A run in the foreground is driven by the client that waits for it and ends when the client leaves; a
run in the background is driven by a task of ours. Anybody with the same key may follow either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from common.api.generation import Generation
from common.api.responses.answer import Answer
from common.api.responses.items import Item
from common.api.responses.store import Store, StoreLimits
from common.api.sse import encode_json
from common.errors import Overloaded, Unavailable, XpydError

log = logging.getLogger(__name__)


class Run:
    """One response, live or kept."""

    def __init__(self, owner: str, answer: Answer, before: list[Item], given: list[Item]) -> None:
        """`before`: the conversation that it continues; `given`: its own input."""
        self.owner = owner
        self.id = answer.envelope.id
        self.answer = answer
        self.given = given
        self.is_kept = answer.envelope.ask.store
        self.task: asyncio.Task[None] | None = None
        self._before = before
        self._changed = asyncio.Event()

    @property
    def is_background(self) -> bool:
        return self.answer.envelope.ask.background

    def conversation(self) -> list[Item]:
        """All that was said, this response included."""
        return [*self._before, *self.given, *self.answer.items]

    def items(self) -> Iterator[Item]:
        yield from self.given
        yield from self.answer.items

    def size_bytes(self) -> int:
        """What keeping it costs, about; what it shares with others is counted in full."""
        state = len(encode_json(self.answer.body())) + len(encode_json(self.conversation()))
        return state + sum(map(len, self.answer.log))

    def wake(self) -> None:
        """There are new events."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """The events behind number `after`, up to the last one, as they come."""
        at = after + 1
        answer = self.answer
        if answer.is_over and at >= len(answer.log):
            yield b": that was all\n\n"  # a comment: streams begin with something
        while True:
            while at < len(answer.log):
                yield answer.log[at]
                at += 1
            if answer.is_over:
                return
            await self._changed.wait()


class Runs:
    """Of all keys. `clock`: monotonic seconds."""

    def __init__(
        self,
        limits: StoreLimits,
        max_background: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live: dict[tuple[str, str], Run] = {}
        self._kept: Store[Run] = Store(limits)
        self._tasks: set[asyncio.Task[None]] = set()
        self._max_background = max_background
        self._clock = clock
        self._is_closed = False

    # --- finding ---------------------------------------------------------------------------------

    def find(self, owner: str, response_id: str) -> Run | None:
        live = self._live.get((owner, response_id))
        if live is not None:
            return live if live.is_kept else None
        return self._kept.get(owner, response_id, self._clock())

    def items_of(self, owner: str) -> dict[str, Item]:
        """Those of the owner's ended responses, by id."""
        found: dict[str, Item] = {}
        for run in self._kept.values(owner, self._clock()):
            for item in run.items():
                found.setdefault(item.id, item)
        return found

    def delete(self, run: Run) -> None:
        """Nobody finds it from now on. In the background it ends, too."""
        run.is_kept = False
        self._kept.remove(run.owner, run.id, self._clock())
        if run.task is not None:
            run.task.cancel()

    # --- driving ---------------------------------------------------------------------------------

    async def play(self, run: Run, generation: Generation) -> AsyncGenerator[bytes, None]:
        """Its events, several at a time, as they are made. Closing this ends the run.

        Raises what fails as long as it can still be told with a status; later, and in the
        background, a failure is the response's last event.
        """
        answer = run.answer
        self._live[run.owner, run.id] = run
        try:
            async with aclosing(generation.pieces()) as pieces:
                async for piece in pieces:
                    opening = answer.begin() if answer.status == "queued" else b""
                    data = opening + answer.accept(piece, int(time.time()))
                    self._told(run)
                    if data:
                        yield data
        except XpydError as error:
            if not _tells_errors(run):
                run.is_kept = False
                raise
            yield self._fail(run, error)
        except Exception:
            log.exception("response failed response_id=%s", run.id)
            failure = XpydError("the server failed to make this response; it has been logged")
            if not _tells_errors(run):
                run.is_kept = False
                raise failure from None
            yield self._fail(run, failure)
        finally:
            self._settle(run)

    def start(self, run: Run, generation: Generation) -> None:
        """Drive it in the background. Raises Overloaded."""
        if self._is_closed:
            raise Unavailable("the server is stopping")
        if len(self._tasks) >= self._max_background:
            raise Overloaded(
                f"{self._max_background} responses run in the background already", "background"
            )
        run.answer.queue()
        self._live[run.owner, run.id] = run
        task = asyncio.create_task(self._drain(run, generation))
        run.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, run))

    async def cancel(self, run: Run) -> None:
        """End a run in the background; returns when nothing of it runs any more."""
        if run.task is not None:
            run.task.cancel()
            await asyncio.wait([run.task])

    async def close(self) -> None:
        """End all runs in the background, and take no more."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _drain(self, run: Run, generation: Generation) -> None:
        async with aclosing(self.play(run, generation)) as events:
            async for _ in events:
                pass

    def _done(self, task: asyncio.Task[None], run: Run) -> None:
        """Also of a task that was cancelled before it began."""
        self._tasks.discard(task)
        self._settle(run)

    # --- one end for each ------------------------------------------------------------------------

    def _fail(self, run: Run, error: XpydError) -> bytes:
        data = run.answer.fail(error)
        self._told(run)
        return data

    def _told(self, run: Run) -> None:
        run.wake()
        if run.answer.is_over:  # before its last event is read: then it can be found
            self._settle(run)

    def _settle(self, run: Run) -> None:
        """It ends here, whatever ended it; the second time nothing happens."""
        if self._live.pop((run.owner, run.id), None) is None:
            return
        if not run.answer.is_over:
            run.is_kept &= run.answer.status != "queued" or run.is_background
            run.answer.cancel()
        if run.is_kept:
            self._kept.put(run.owner, run.id, run, run.size_bytes(), self._clock())
        run.wake()


def _tells_errors(run: Run) -> bool:
    ask = run.answer.envelope.ask
    return ask.background or (ask.stream and run.answer.status != "queued")
