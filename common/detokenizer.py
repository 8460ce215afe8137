"""Token ids to text, one at a time. Knows nothing of stop strings and of requests.

Every detokenizer keeps two promises: no piece ends inside a UTF-8 character, and the joined pieces,
`finish` included, are what decoding the whole answer behind its prompt gives.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

from common.vocabulary import Vocabulary

_CONTEXT_TOKENS = 8  # of the prompt; more than the longest UTF-8 character has tokens
_MAX_PENDING_TOKENS = 16  # then a broken character is given out as U+FFFD


class IncrementalDetokenizer(Protocol):
    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often "" in the middle of a character."""
        ...

    def finish(self) -> str:
        """What was held back: an unfinished character becomes U+FFFD."""
        ...


class BytewiseDetokenizer:
    """For vocabularies whose tokens are bytes. Constant work per token.

    A run of byte-fallback tokens that is not valid UTF-8 gives U+FFFD for its broken parts only;
    the tokenizers library replaces the whole run, valid characters too, which no stream could do.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], skip: frozenset[int]) -> None:
        """`prompt`: the tokens before; it decides whether a leading space belongs to the answer."""
        self._vocabulary = vocabulary
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_start = True
        self._strip_spaces = vocabulary.strip_spaces
        if any(token_id not in skip and vocabulary.token(token_id) for token_id in prompt):
            self._is_start = False
            self._strip_spaces = 0
            tail = [i for i in prompt[-_CONTEXT_TOKENS:] if i not in skip]
            self._decoder.decode(b"".join(map(vocabulary.bytes_of, tail)))

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        if self._is_start or self._strip_spaces:
            return self._push_first(token_id)
        return self._decoder.decode(self._vocabulary.bytes_of(token_id))

    def _push_first(self, token_id: int) -> str:
        vocabulary = self._vocabulary
        data = (
            vocabulary.first_bytes_of(token_id) if self._is_start else vocabulary.bytes_of(token_id)
        )
        self._is_start = self._is_start and not vocabulary.token(token_id)
        stripped = data
        while self._strip_spaces and stripped.startswith(b" "):
            stripped = stripped[1:]
            self._strip_spaces -= 1
        if stripped:
            self._strip_spaces = 0
        return self._decoder.decode(stripped)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For every other decoder: decodes a short window twice and gives out the difference."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip
        self._ids = [i for i in prompt[-_CONTEXT_TOKENS:] if i not in skip]
        self._shown = len(self._ids)  # how many of `_ids` have been given out

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        self._ids.append(token_id)
        text = self._difference()
        waits = not text or text.endswith("\ufffd")
        if waits and len(self._ids) - self._shown < _MAX_PENDING_TOKENS:
            return ""
        return self._give(text)

    def finish(self) -> str:
        return self._give(self._difference())

    def _difference(self) -> str:
        before = self._decode(self._ids[: self._shown])
        return self._decode(self._ids)[len(before) :]

    def _give(self, text: str) -> str:
        del self._ids[: self._shown]
        self._shown = len(self._ids)
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
