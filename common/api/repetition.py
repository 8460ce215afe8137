"""Notice an answer that only repeats itself: vLLM's `repetition_detection`. Knows only token ids.

Each period from `min_pattern_size` to `max_pattern_size` counts for how many tokens in a row the
answer has equalled itself that many tokens earlier: one comparison per period and token.
"""

from __future__ import annotations


class RepetitionWatch:
    def __init__(self, min_size: int, max_size: int, min_count: int) -> None:
        """Found when a pattern of so many tokens has come `min_count` times in a row, at once."""
        self._sizes = range(min_size, max_size + 1)
        self._min_count = min_count
        self._equal = [0] * (max_size + 1)  # by period
        self._recent: list[int] = []  # the last `max_size` tokens
        self.found = False

    def push(self, token_id: int) -> None:
        for size in self._sizes:
            repeats = size <= len(self._recent) and self._recent[-size] == token_id
            self._equal[size] = self._equal[size] + 1 if repeats else 0
            self.found |= self._equal[size] >= size * (self._min_count - 1)
        self._recent.append(token_id)
        del self._recent[: -self._sizes[-1]]
