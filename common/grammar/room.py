"""Watches that an output can still be ended within its tokens. A pure function of the tokens so
far: another instance that replays them knows the same.
"""

from __future__ import annotations

from llguidance import LLMatcher

from common.grammar.closing import Closer
from common.grammar.matcher import CompiledGrammar

_SPARE = 16  # tokens that may be left before an end has to be looked for


class Room:
    """For one output. `matcher`, in all of it, stands behind the tokens taken so far."""

    def __init__(self, closer: Closer, end_len: int, max_tokens: int) -> None:
        """`end_len`: tokens of the shortest whole output."""
        self._closer = closer
        self._growth = end_len // 2 + _SPARE  # what a token may open, as a guess
        self._need = end_len  # tokens that an end takes, when last looked for
        self._left = max_tokens
        self._is_hopeless = False  # no end was found that fits: the output may be cut anywhere
        self._looked_ahead: tuple[int, int | None] | None = None  # token, and the need behind it

    @staticmethod
    def of(compiled: CompiledGrammar, max_tokens: int | None) -> Room | None:
        """None: there is no limit, or no end is known that fits."""
        closer, end_len = compiled.closer, compiled.end_len
        if closer is None or end_len is None or max_tokens is None or end_len > max_tokens:
            return None
        return Room(closer, end_len, max_tokens)

    def holds(self, token: int, matcher: LLMatcher) -> bool:
        """Can the output be ended behind this token, which the grammar allows?"""
        if self._is_roomy(token):
            return True
        ahead = matcher.deep_copy()
        ahead.consume_token(token)
        end = self._closer.end_from(ahead, self._left - 1)
        self._looked_ahead = token, None if end is None else len(end)
        return end is not None

    def way_out(self, matcher: LLMatcher) -> int | None:
        """The next token of an end that fits; None if there is none."""
        end = self._closer.end_from(matcher, self._left)
        return end[0] if end else None

    def took(self, token: int, matcher: LLMatcher) -> None:
        """`matcher`: behind it."""
        is_roomy, seen = self._is_roomy(token), self._looked_ahead
        self._left -= 1
        self._looked_ahead = None
        if is_roomy:
            return
        if seen is not None and seen[0] == token:
            need = seen[1]
        else:
            end = self._closer.end_from(matcher, self._left)
            need = None if end is None else len(end)
        self._is_hopeless = need is None
        self._need = self._need if need is None else need

    def _is_roomy(self, token: int) -> bool:
        """Is there no need to look?"""
        if self._is_hopeless:
            return True
        can_grow = self._closer.is_structure(token)
        return self._left > self._need + (self._growth if can_grow else _SPARE)
