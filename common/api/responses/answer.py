"""One response while it is made: pieces in, encoded events out. Plain state, no I/O, no clock.

    queued ──▶ in_progress ──▶ completed | incomplete | failed | cancelled
       └──────────────────────────────────────────────▶ failed | cancelled

Every event has the next sequence number, and the last one has the whole response. There is no event
named for a cancelled response, so that one ends with `response.incomplete` and its own status.
"""

from __future__ import annotations

from typing import Any

from common.api.choices import Piece
from common.api.generation import Usage
from common.api.responses.envelope import Envelope, ResponseStatus, usage_body
from common.api.responses.items import Item
from common.api.responses.output import Event, Gain, Output, TextGain, join
from common.api.responses.reading import AnswerReader
from common.api.sse import encode_json
from common.errors import XpydError

_LAST_EVENTS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.incomplete",
}


class Answer:
    def __init__(
        self, envelope: Envelope, usage: Usage, reader: AnswerReader, *, in_pieces: bool
    ) -> None:
        """`in_pieces`: somebody may want to see it grow. Else all text comes in one delta."""
        self.envelope = envelope
        self.status: ResponseStatus = "queued"
        self.log: list[bytes] = []  # if it is to be kept: the event of each sequence number
        self._num_events = 0
        self._usage = usage
        self._reader = reader
        self._output = Output()
        self._in_pieces = in_pieces
        self._waiting: list[Gain] = []
        self._error: XpydError | None = None
        self._completed: int | None = None

    @property
    def is_over(self) -> bool:
        return self.status in _LAST_EVENTS

    @property
    def items(self) -> list[Item]:
        return self._output.snapshot()

    def body(self) -> dict[str, Any]:
        """The response as it stands."""
        usage = usage_body(self._usage, self._reader.num_reasoning_tokens) if self.is_over else None
        return self.envelope.body(
            self.status, self.items, usage=usage, error=self._error, completed=self._completed
        )

    # --- what happens to it: each gives the new events, encoded ----------------------------------

    def queue(self) -> bytes:
        assert self.status == "queued" and not self._num_events
        return self._tell([self._state("response.created"), self._state("response.queued")])

    def begin(self) -> bytes:
        assert self.status == "queued"
        self.status = "in_progress"
        created = [] if self._num_events else [self._state("response.created")]
        return self._tell([*created, self._state("response.in_progress")])

    def accept(self, piece: Piece, unix_time: int) -> bytes:
        assert self.status == "in_progress"
        self._waiting += self._reader.read(piece)
        events: list[Event] = []
        if self._in_pieces or piece.finish_reason:
            for gain in join(self._waiting):
                events += self._output.add(gain)
            self._waiting = []
        data = self._tell(events)
        if piece.finish_reason:
            data += self._finish(is_cut=piece.finish_reason == "length", unix_time=unix_time)
        return data

    def fail(self, error: XpydError) -> bytes:
        self._error = error
        return self._end("failed")

    def cancel(self) -> bytes:
        return self._end("cancelled")

    def _finish(self, *, is_cut: bool, unix_time: int) -> bytes:
        if is_cut:
            return self._end("incomplete")
        events: list[Event] = []
        if not self.items:  # an answer of no words is still an answer
            events = self._output.add(TextGain(""))
        self._completed = unix_time
        return self._tell(events) + self._end("completed")

    def _end(self, status: ResponseStatus) -> bytes:
        assert not self.is_over
        closing = self._output.close("completed" if status == "completed" else "incomplete")
        self.status = status
        return self._tell(closing) + self._tell([self._state(_LAST_EVENTS[status])])

    # --- events ----------------------------------------------------------------------------------

    def _state(self, kind: str) -> Event:
        return {"type": kind, "response": self.body()}

    def _tell(self, events: list[Event]) -> bytes:
        new = []
        for event in events:
            kind = event["type"].encode()
            data = encode_json({**event, "sequence_number": self._num_events})
            new.append(b"event: " + kind + b"\ndata: " + data + b"\n\n")
            self._num_events += 1
        if self.envelope.ask.store:
            self.log += new
        return b"".join(new)
