"""How an output can be brought to its end, in few tokens, from where it stands in its grammar.

Nothing here knows a schema: at each step the grammar says which tokens may follow, and the one is
taken that closes most: brackets, then quotes, then what has to come first. For JSON that is the
shortest end or nearly; for other grammars it is one if it gets there at all.
"""

from __future__ import annotations

import re

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

_CLOSES = re.compile(rb"[\]}]+")
_ENDS_STRING = re.compile(rb'"[\]}]*')
_EMPTY_STRING = re.compile(rb'"{1,2}')
_SEPARATES = re.compile(rb'[,:]"?')
_OPENS = re.compile(rb"[{\[]")
_STRUCTURE = re.compile(rb'["{}\[\],:\\]')
_CONTINUATION = bytes(range(0x80, 0xC0))

Ids = NDArray[np.int64]


class Closer:
    """For one vocabulary. Copies matchers, changes none."""

    def __init__(self, tokens: LLTokenizer) -> None:
        spelled = [tokens.decode_bytes([i]) for i in range(tokens.vocab_size)]
        by_length = sorted(
            (i for i, text in enumerate(spelled) if text and not tokens.is_special_token(i)),
            key=lambda i: (not _ends_a_character(spelled[i]), -len(spelled[i])),
        )

        def those(pattern: re.Pattern[bytes]) -> list[int]:
            return [i for i in by_length if pattern.fullmatch(spelled[i])]

        plain = [i for i in by_length if not spelled[i][:1].isspace()]
        simple = [i for i in plain if not _OPENS.search(spelled[i])]
        at_once = [*those(_CLOSES), *those(_EMPTY_STRING), *those(_SEPARATES)]
        zero = those(re.compile(rb"0"))
        # In tiers, as the first few tokens are nearly always enough.
        self._inside = _tiers(those(_ENDS_STRING), plain, by_length)
        self._outside = _tiers(at_once, simple, by_length)
        self._in_number = _tiers([*at_once, *zero], simple, by_length)
        self._brackets = those(re.compile(rb"[\]}]"))
        self._zero_and_letter = [*zero, *those(re.compile(rb"a"))]
        self._num_words = -(-tokens.vocab_size // 32)
        self._is_structure = [bool(_STRUCTURE.search(text)) for text in spelled]

    def is_structure(self, token: int) -> bool:
        """Could this token open something that must then be closed?"""
        return self._is_structure[token]

    def end_from(self, matcher: LLMatcher, limit: int) -> list[int] | None:
        """At most `limit` tokens after which the output may end; None if none were found."""
        if matcher.is_accepting():
            return []
        ahead = matcher.deep_copy()
        words = np.zeros(self._num_words, dtype=np.int32)
        path: list[int] = []
        while len(path) < limit:
            ahead.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            token = self._best(words)
            if token is None or ahead.is_error():
                return None
            ahead.consume_token(token)
            path.append(token)
            if ahead.is_accepting():
                return path
        return None

    def _best(self, words: NDArray[np.int32]) -> int | None:
        """The first of those that may follow, in the order of where the output seems to stand."""
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little")
        order = self._outside
        if len(self._brackets) == 2 and allowed[self._brackets].all():
            order = self._inside  # both brackets at once are only text
        elif allowed[self._zero_and_letter].tolist() == [1, 0]:
            order = self._in_number
        for tier in order:
            found = allowed[tier]
            place = int(found.argmax())
            if found[place]:
                return int(tier[place])
        return None


def _ends_a_character(text: bytes) -> bool:
    """False for tokens that leave a character of UTF-8 unfinished."""
    try:
        text.lstrip(_CONTINUATION).decode()
    except UnicodeDecodeError:
        return False
    return True


def _tiers(*token_ids: list[int]) -> list[Ids]:
    return [np.array(ids, dtype=np.int64) for ids in token_ids if ids]
