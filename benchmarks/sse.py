"""Server-sent events: bytes in, as they come off the wire; events out. Knows nothing of what an
event means.

Source: WHATWG HTML standard, section "Server-sent events" (line ends \\n, \\r\\n and \\r; comments;
joined data lines). One leniency: an event that the connection's end leaves without its blank line
is still delivered by `close()`.
"""

from __future__ import annotations

from typing import NamedTuple


class SSEEvent(NamedTuple):
    name: str  # "" when the server named none
    data: bytes


class SSEParser:
    def __init__(self) -> None:
        self._rest = b""  # an unfinished line
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[SSEEvent]:
        """Events completed by these bytes. However a stream is split, the same events come out."""
        lines = (self._rest + received).splitlines(keepends=True)
        self._rest = b""
        # A last line without its end waits. So does one that ends in \r: the next byte may be its
        # \n.
        if lines and not lines[-1].endswith(b"\n"):
            self._rest = lines.pop()
        return [event for line in lines if (event := self._take(line)) is not None]

    def close(self) -> list[SSEEvent]:
        """The connection has ended: what was still held back."""
        events = [self._take(self._rest), self._dispatch()]
        self._rest = b""
        return [event for event in events if event is not None]

    def _take(self, line: bytes) -> SSEEvent | None:
        line = line.rstrip(b"\r\n")
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        return None  # comments (no field name), ids, retry times and unknown fields

    def _dispatch(self) -> SSEEvent | None:
        event = SSEEvent(self._name, b"\n".join(self._data)) if self._data else None
        self._name, self._data = "", []
        return event
