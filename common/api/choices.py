"""From token events to text, for one choice and for several at once. Knows no HTTP and no JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from common.admission.admission import Place
from common.api.deadline import Deadline
from common.api.observe import Observation
from common.api.repetition import RepetitionWatch
from common.detokenizer import IncrementalDetokenizer
from common.engine_client import EngineClient
from common.errors import XpydError
from common.request import EngineRequest, FinishReason, TokenEvent, TokenLogprob
from common.stop_strings import StopMatcher

REPETITION = "repetition"  # vLLM's finish_reason, beyond the engine's own
_MAX_QUEUED_PIECES = 64  # then the choices wait for whoever reads them


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice gained with one event. The last one has `finish_reason`."""

    choice: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    text_offsets: tuple[int, ...] = ()  # per token: characters of the answer before it
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that ended it
    first: TokenEvent | None = None  # of the first piece: timings, cached tokens, prompt logprobs


class ChoiceText:
    """The text of one choice as its tokens come in."""

    def __init__(
        self,
        choice: int,
        detokenizer: IncrementalDetokenizer,
        stops: Sequence[str],
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        special_ids: frozenset[int] = frozenset(),
        repetition: RepetitionWatch | None = None,
    ) -> None:
        """`special_ids`: among them the tokens that end an answer without being part of it."""
        self._repetition = repetition
        self._choice = choice
        self._detokenizer = detokenizer
        self._stops = StopMatcher(stops, include_stop=include_stop) if stops else None
        self._include_stop = include_stop
        self._special_ids = special_ids
        self._min_tokens = min_tokens  # no stop string counts before
        self._has_begun = False
        self._num_tokens = 0
        self._num_chars = 0  # of the text before any stop string is cut off

    def accept(self, event: TokenEvent) -> Piece:
        """The event as text. Tokens behind a stop string are dropped."""
        texts: list[str] = []
        offsets: list[int] = []
        for token_id in event.token_ids:
            offsets.append(self._num_chars)
            if len(offsets) == len(event.token_ids) and self._is_end(event):
                break
            texts.append(self._push(token_id))
            if self._stops and self._stops.found:
                break
            if self._repetition and self._repetition.found:
                break
        reason = event.finish_reason.value if event.finish_reason else None
        if self._repetition and self._repetition.found:
            reason = REPETITION
        if reason and not (self._stops and self._stops.found):
            texts.append(self._finish())
        stop_reason: str | int | None = event.stop_token_id
        if self._stops and self._stops.found:
            reason, stop_reason = FinishReason.STOP.value, self._stops.found
        is_first, self._has_begun = not self._has_begun, True
        return Piece(
            choice=self._choice,
            text="".join(texts),
            token_ids=event.token_ids[: len(offsets)],
            logprobs=event.logprobs[: len(offsets)],
            text_offsets=tuple(offsets),
            finish_reason=reason,
            stop_reason=stop_reason,
            first=event if is_first else None,
        )

    def _is_end(self, event: TokenEvent) -> bool:
        """Did the event's last token only end the answer? Then it is counted, not shown."""
        if event.finish_reason is not FinishReason.STOP or self._include_stop:
            return False
        last = event.token_ids[-1]
        return last == event.stop_token_id or last in self._special_ids

    def _push(self, token_id: int) -> str:
        self._num_tokens += 1
        if self._repetition:
            self._repetition.push(token_id)
        text = self._detokenizer.push(token_id)
        self._num_chars += len(text)
        if self._stops is None or self._num_tokens <= self._min_tokens:
            return text
        return self._stops.push(text)

    def _finish(self) -> str:
        text = self._detokenizer.finish()
        if self._stops is None:
            return text
        shown = self._stops.push(text)
        return shown if self._stops.found else shown + self._stops.finish()


async def run_choice(
    client: EngineClient,
    request: EngineRequest,
    text: ChoiceText,
    observed: Observation,
    place: Place,
) -> AsyncGenerator[Piece, None]:
    """Run one sequence when it is its turn. A stop string ends it in the engine too; so does
    closing this generator."""
    observed.submitted()
    is_over = False
    try:
        await place.turn()
        observed.admitted()
        async with aclosing(client.generate(request)) as events:
            async for event in events:
                place.came(len(event.token_ids), event.num_cached_tokens)
                if event.timings:
                    observed.timed(event.timings)
                piece = text.accept(event)
                observed.tokens(len(piece.token_ids))
                if piece.finish_reason:
                    observed.finished(piece.finish_reason)
                is_over = piece.finish_reason is not None
                yield piece
                if is_over and event.finish_reason is None:
                    return  # a stop string: the engine does not know yet
        if not is_over:
            raise XpydError("the engine ended the answer without a reason")
    except Exception:
        observed.finished("error")
        raise
    finally:
        place.leave()
        observed.closed()


async def pace(run: AsyncGenerator[Piece, None], interval: int) -> AsyncGenerator[Piece, None]:
    """The first piece at once, then pieces of `interval` tokens or more; nothing is lost."""
    held: list[Piece] = []
    try:
        async with aclosing(run) as pieces:
            async for piece in pieces:
                held.append(piece)
                num_tokens = sum(len(each.token_ids) for each in held)
                if piece.first or piece.finish_reason or num_tokens >= interval:
                    yield _joined(held)
                    held = []
    except XpydError:
        if held:
            yield _joined(held)
        raise


def _joined(pieces: list[Piece]) -> Piece:
    last = pieces[-1]
    if len(pieces) == 1:
        return last
    return replace(
        last,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(i for piece in pieces for i in piece.token_ids),
        logprobs=tuple(p for piece in pieces for p in piece.logprobs),
        text_offsets=tuple(offset for piece in pieces for offset in piece.text_offsets),
    )


async def merge(
    runs: Sequence[AsyncGenerator[Piece, None]], deadline: Deadline | None = None
) -> AsyncGenerator[Piece, None]:
    """All pieces as they come. If one choice fails, the deadline passes or the reader leaves, all
    are closed; at the deadline also while the reader is busy with what came before."""
    if len(runs) == 1 and deadline is None:
        async with aclosing(runs[0]) as run:
            async for piece in run:
                yield piece
        return
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(_MAX_QUEUED_PIECES)
    tasks = [asyncio.ensure_future(_pump(run, queue)) for run in runs]
    missed: list[XpydError] = []

    def end(deadline: Deadline) -> None:
        missed.append(deadline.error())
        for task in tasks:
            task.cancel()
        if queue.empty():
            queue.put_nowait(missed[0])  # the reader waits there

    timer = None
    if deadline is not None:
        timer = asyncio.get_running_loop().call_later(deadline.left_s, end, deadline)
    try:
        remaining = len(runs)
        while remaining:
            if missed and queue.empty():
                raise missed[0]
            item = await queue.get()
            if isinstance(item, Piece):
                yield item
            elif item is None:
                remaining -= 1
            else:
                raise item
    finally:
        if timer is not None:
            timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    run: AsyncGenerator[Piece, None], queue: asyncio.Queue[Piece | Exception | None]
) -> None:
    try:
        async with aclosing(run):
            async for piece in run:
                await queue.put(piece)
    except Exception as error:  # raised again by the reader
        await queue.put(error)
    else:
        await queue.put(None)
