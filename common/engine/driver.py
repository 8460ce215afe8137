"""The one thread that owns an engine, and its asyncio side. Knows no more of it than `step`.

Commands go in through a queue and run between steps; results come out with one wake-up of the event
loop per step. Without anything to do the thread sleeps on a condition.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from common.engine.engine import Engine
from common.engine.interface import StepResult
from common.engine.patience import Patience
from common.errors import Unavailable, XpydError
from common.thread_slice import ask_for_usual_slices

log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[Engine], object]

IDLE_WAKE_UP_S = 0.25  # how often an idle thread shows that it is alive


class EngineDriver:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine  # touched by the thread only
        self.listeners: list[Callable[[StepResult], None]] = []  # called in the event loop
        self.last_progress = time.monotonic()  # of the last finished step or idle wake-up
        self._patience = Patience()
        self.num_steps = 0
        self.num_failed_steps = 0
        self._commands: deque[Command] = deque()
        self._wake_up = threading.Condition()
        self._is_stopping = False
        self._has_stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        engine.notify_with(lambda: self.post(_nothing))

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once. Results are delivered in `loop`."""
        self._loop = loop
        self.last_progress = time.monotonic()
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping

    def is_stuck(self) -> bool:
        """Has it been at one thing for longer than it ever was? `patience.py` says how long."""
        return time.monotonic() - self.last_progress >= self._patience.limit_s

    def post(self, command: Command) -> None:
        """Run `command(engine)` before the next step; from any thread. Ignored once stopped."""
        with self._wake_up:
            if not self._has_stopped:
                self._commands.append(command)
                self._wake_up.notify()

    async def call(self, command: Callable[[Engine], T]) -> T:
        """The same, and return or raise what it does. Raises Unavailable once stopped.

        A caller that is cancelled meanwhile does not stop the command: what takes something must
        be followed by a `post` that gives it back.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def run(engine: Engine) -> None:
            try:
                result = command(engine)
            except Exception as error:
                _call_in(loop, settle, None, error)
            else:
                _call_in(loop, settle, result, None)

        with self._wake_up:
            if self._has_stopped:
                raise Unavailable("the engine has stopped")
            self._commands.append(run)
            self._wake_up.notify()
        return await answer

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Fail what still runs, end the thread. False: it was still in a step at the deadline."""
        with self._wake_up:
            self._is_stopping = True
            self._wake_up.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, timeout_s)
        await asyncio.sleep(0)  # what the thread delivered last runs now
        return not self._thread.is_alive()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        ask_for_usual_slices()
        is_blocked = False
        while True:
            commands = self._next_commands(is_blocked)
            began = time.monotonic()
            for command in commands:
                self._execute(command)
            if self._is_stopping:
                break
            is_blocked = self._engine.has_work() and not self._step()
            self.last_progress = time.monotonic()
            self._patience.took(self.last_progress - began)
        self._shut_down()

    def _next_commands(self, is_blocked: bool) -> list[Command]:
        """Wait until there is something to do; `is_blocked`: steps do nothing until a command."""
        with self._wake_up:
            if (is_blocked or not self._engine.has_work()) and not (
                self._commands or self._is_stopping
            ):
                self._wake_up.wait(IDLE_WAKE_UP_S)
            commands = list(self._commands)
            self._commands.clear()
            return commands

    def _execute(self, command: Command) -> None:
        try:
            command(self._engine)
        except Exception:
            log.exception("an engine command failed")

    def _step(self) -> bool:
        """One step, delivered. False: nothing could run."""
        try:
            result = self._engine.step()
        except Exception:
            log.exception("an engine step failed; the requests in it end")
            self.num_failed_steps += 1
            result = self._engine.fail_running(XpydError("internal error in the engine"))
        self.num_steps += 1
        if not result.is_empty():
            _call_in(self._loop, self._deliver, result)
        return bool(result.num_tokens) or not result.is_empty()

    def _shut_down(self) -> None:
        with self._wake_up:
            self._has_stopped = True
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            self._execute(command)
        result = self._engine.fail_all(Unavailable("the instance is shutting down"))
        if not result.is_empty():
            _call_in(self._loop, self._deliver, result)
        self._engine.close()

    def _deliver(self, result: StepResult) -> None:
        for listener in self.listeners:
            try:
                listener(result)
            except Exception:
                log.exception("a listener of engine steps failed")


def _nothing(engine: Engine) -> None:
    """A command that only wakes the thread up."""


def _call_in(
    loop: asyncio.AbstractEventLoop | None, function: Callable[..., object], *args: object
) -> None:
    """`call_soon_threadsafe`, to a loop that may have closed: then nobody is left to be told."""
    if loop is None or loop.is_closed():
        return
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # closed since
        log.debug("event loop closed before a result was delivered")
