"""From pieces of one choice to gains of the answer: which tokens are text, thoughts, calls."""

from __future__ import annotations

from typing import Any

from common.api.choices import Piece
from common.api.logprobs import chat_logprobs
from common.api.message import MessageReader
from common.api.responses.output import CallGain, Gain, ReasoningGain, TextGain
from common.api.tools.deltas import CallDelta, ContentDelta, Delta
from common.vocabulary import Vocabulary


class AnswerReader:
    """`num_top`: log-probabilities of how many others to give with each token; None: of none."""

    def __init__(self, vocabulary: Vocabulary, message: MessageReader, num_top: int | None) -> None:
        self._vocabulary = vocabulary
        self._message = message
        self._num_top = num_top
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is still held back
        self._in_text = True

    @property
    def num_reasoning_tokens(self) -> int:
        return self._message.num_reasoning_tokens

    def read(self, piece: Piece) -> list[Gain]:
        self._logprobs += self._logprobs_of(piece)
        deltas = self._message.push(piece.text, piece.text_offsets)
        if piece.finish_reason:
            deltas += self._message.finish()
        gains = [self._gain(delta) for delta in deltas]
        if gains:
            self._in_text = isinstance(gains[-1], TextGain)
        if piece.finish_reason and self._logprobs and self._in_text:
            gains.append(TextGain("", self._take_logprobs()))  # of tokens that a stop cut off
        return gains

    def _gain(self, delta: Delta) -> Gain:
        logprobs = self._take_logprobs()
        if isinstance(delta, ContentDelta):
            return TextGain(delta.text, logprobs)
        if isinstance(delta, CallDelta):
            return CallGain(delta.arguments, delta.name, delta.call_id)
        return ReasoningGain(delta.text)

    def _logprobs_of(self, piece: Piece) -> list[dict[str, Any]]:
        if self._num_top is None:
            return []
        return chat_logprobs(
            self._vocabulary, piece.token_ids, piece.logprobs, num_top=self._num_top
        )

    def _take_logprobs(self) -> tuple[dict[str, Any], ...]:
        taken, self._logprobs = tuple(self._logprobs), []
        return taken
