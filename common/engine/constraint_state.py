"""Where one output stands in its grammar: a pure function of the constraint and the output tokens.

So it needs no hand-over: after a preemption it is still there, another instance replays the tokens.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from llguidance import LLExecutor
from numpy.typing import NDArray
from torch import Tensor

from common.errors import BadRequest, XpydError
from common.grammar.matcher import CompiledGrammar, first_line
from common.grammar.room import Room

MAX_THREADS = 8

# [256, 8]: what a byte of a mask adds to the logits of its eight tokens.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDENDS = np.where(_BITS, np.float32(0), np.float32("-inf"))


class ConstraintState:
    """Bound to one sequence."""

    def __init__(
        self, compiled: CompiledGrammar, *, may_end: bool, field: str, max_tokens: int | None = None
    ) -> None:
        """`may_end`: an end token ends the output; otherwise none may come. `max_tokens`: of the
        output, which is closed in time for it; None: it is not."""
        self.matcher = compiled.matcher.deep_copy()
        self._end_ids = compiled.end_ids
        self._may_end = may_end
        self._num_seen = 0
        self._field = field
        self.is_complete = False  # the grammar is satisfied and nothing may follow
        self.was_cut = False  # closed because its tokens ran out, not because the model ended it
        self._room = Room.of(compiled, max_tokens)

    def catch_up(self, output_tokens: NDArray[np.int64]) -> None:
        """`output_tokens`: all so far. An end token is no part of the grammar."""
        for token in output_tokens[self._num_seen :].tolist():
            self.accept(token)

    def accept(self, token: int) -> None:
        """The next output token."""
        self._num_seen += 1
        if token not in self._end_ids:
            self.matcher.consume_token(token)
            if self._room is not None:
                self._room.took(token, self.matcher)
        self.is_complete = self.matcher.is_stopped() and not self.matcher.is_error()

    def allows(self, token: int) -> bool:
        """Without a mask: a twentieth of its time. False for an end token, which only a mask
        decides about."""
        return token not in self._end_ids and self.matcher.validate_tokens([token]) == 1

    def keep_room(self, token: int) -> int:
        """The next token: this one, which the grammar allows, or, if the output could then not be
        ended within `max_tokens`, the first of those that end it. Where that cannot be done
        either, this one."""
        if self._room is None or token in self._end_ids or self._room.holds(token, self.matcher):
            return token
        instead = self._room.way_out(self.matcher)
        if instead is None:
            return token
        self.was_cut = True
        return instead

    def correct(self, bits: NDArray[np.int32]) -> XpydError | None:
        """Look over this output's mask, one bit per token. An error ends the request."""
        if self.matcher.is_error():
            reason = first_line(self.matcher.get_error())
            return BadRequest(f"{self._field} cannot be enforced further: {reason}", self._field)
        if not self._may_end:
            words = bits.view(np.uint32)
            for token in self._end_ids:
                words[token >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (token & 31)))
        return None


class TokenMasks:
    """Forbids tokens in all constrained rows of a step together. Starts nothing until there are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._executor: LLExecutor | None = None
        self._buffer: NDArray[np.float32] = np.empty((0, 8), dtype=np.float32)

    def apply(
        self, logits: Tensor, constrained: dict[int, ConstraintState]
    ) -> dict[int, XpydError]:
        """Set the logits of forbidden tokens to -inf, in place; errors by row."""
        vocab_size = logits.shape[1]
        bits = np.zeros((len(constrained), -(-vocab_size // 32)), dtype=np.int32)
        self._compute(list(constrained.values()), bits)
        errors: dict[int, XpydError] = {}
        for place, (row, state) in enumerate(constrained.items()):
            error = state.correct(bits[place])
            if error is not None:
                errors[row] = error
        if self._device.type == "cpu":
            self._add_on_cpu(logits.numpy(), list(constrained), bits)
        else:
            chosen = torch.from_numpy(bits.view(np.uint8)).to(self._device).long()
            addends = torch.from_numpy(_ADDENDS).to(self._device)[chosen]
            logits[list(constrained)] += addends.view(len(bits), -1)[:, :vocab_size]
        return errors

    def _add_on_cpu(
        self, logits: NDArray[np.float32], rows: list[int], bits: NDArray[np.int32]
    ) -> None:
        """A third of the time torch takes for it: no indices of 64 bits, no fresh memory."""
        masks = bits.view(np.uint8)
        if self._buffer.shape[0] < masks.size:
            self._buffer = np.empty((masks.size, 8), dtype=np.float32)
        addends = self._buffer[: masks.size]
        np.take(_ADDENDS, masks.ravel(), axis=0, out=addends, mode="clip")
        addends = addends.reshape(len(rows), -1)[:, : logits.shape[1]]
        if len(rows) == len(logits):
            logits += addends
            return
        for row, added in zip(rows, addends, strict=True):
            logits[row] += added

    def _compute(self, states: list[ConstraintState], bits: NDArray[np.int32]) -> None:
        """On all cores of this process; on a single one without the way to another thread."""
        address, stride = bits.ctypes.data, bits.strides[0]
        if self._num_threads == 1:
            for place, state in enumerate(states):
                state.matcher.unsafe_compute_mask_ptr(address + place * stride, stride)
            return
        if self._executor is None:
            self._executor = LLExecutor(self._num_threads)
        places = [(state.matcher, place) for place, state in enumerate(states)]
        self._executor.unsafe_compute_mask_ptr(places, address, stride, len(states))
