"""Where grammars put what they read: text and calls, numbered and named, as deltas.

White space behind calls is dropped, and white space before them at the end of an answer; whatever
else is given to it comes out.
"""

from __future__ import annotations

from collections.abc import Callable

from common.api.tools.deltas import CallDelta, ContentDelta, ToolDelta


class Writer:
    def __init__(self, new_id: Callable[[], str], max_calls: int | None = None) -> None:
        """`max_calls`: further calls are dropped (parallel_tool_calls: false)."""
        self.num_calls = 0
        self._new_id = new_id
        self._max_calls = max_calls
        self._deltas: list[ToolDelta] = []
        self._space = ""  # not shown yet: it may stand before a call
        self._after_call = False  # nothing but white space since the last call
        self._is_dropped = False

    def take(self) -> list[ToolDelta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def text(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
        if not text:
            return
        self._after_call = False
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._deltas.append(ContentDelta(shown))

    def begin(self, name: str, call_id: str = "") -> None:
        """`call_id`: the model's own; else one is made."""
        self._after_call = True
        self._is_dropped = self._max_calls is not None and self.num_calls >= self._max_calls
        if not self._is_dropped:
            self._deltas.append(CallDelta(self.num_calls, "", name, call_id or self._new_id()))
            self.num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the call that `begin` began."""
        if text and not self._is_dropped:
            self._deltas.append(CallDelta(self.num_calls - 1, text))

    def call(self, name: str, arguments: str) -> None:
        self.begin(name)
        self.arguments(arguments)

    def finish(self) -> None:
        if self._space and not self._after_call:
            self._deltas.append(ContentDelta(self._space))
        self._space = ""
