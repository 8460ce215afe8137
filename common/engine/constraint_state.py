"""Where one output stands in its grammar: a pure function of the constraint and the output tokens.

So it needs no hand-over: after a preemption it is still there, another instance replays the tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import BadRequest, XpydError
from common.grammar.matcher import CompiledGrammar, first_line


class ConstraintState:
    """Bound to one sequence."""

    def __init__(self, compiled: CompiledGrammar, *, may_end: bool, field: str) -> None:
        """`may_end`: an end token ends the output; otherwise none may come."""
        self._matcher = compiled.matcher.deep_copy()
        self._end_ids = compiled.end_ids
        self._may_end = may_end
        self._num_seen = 0
        self._field = field
        self.is_complete = False  # the grammar is satisfied and nothing may follow

    def catch_up(self, output_tokens: NDArray[np.int64]) -> None:
        """`output_tokens`: all so far. An end token is no part of the grammar."""
        for token in output_tokens[self._num_seen :].tolist():
            if token not in self._end_ids:
                self._matcher.consume_token(token)
        self._num_seen = len(output_tokens)
        self.is_complete = self._matcher.is_stopped() and not self._matcher.is_error()

    def fill(self, bits: NDArray[np.int32]) -> XpydError | None:
        """The tokens that may come next, one bit each. An error ends the request."""
        matcher = self._matcher
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if matcher.is_error():
            reason = first_line(matcher.get_error())
            return BadRequest(f"{self._field} cannot be enforced further: {reason}", self._field)
        if not self._may_end:
            words = bits.view(np.uint32)
            for token in self._end_ids:
                words[token >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (token & 31)))
        return None


def apply_constraints(
    logits: Tensor, constrained: dict[int, ConstraintState]
) -> dict[int, XpydError]:
    """Set the logits of forbidden tokens to -inf, all given rows in one go. Errors by row."""
    vocab_size = logits.shape[1]
    bits = np.zeros((len(constrained), -(-vocab_size // 32)), dtype=np.int32)
    errors: dict[int, XpydError] = {}
    for place, (row, state) in enumerate(constrained.items()):
        error = state.fill(bits[place])
        if error is not None:
            errors[row] = error
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    forbidden = torch.from_numpy(allowed == 0).to(logits.device)
    if len(constrained) == len(logits):
        logits.masked_fill_(forbidden, float("-inf"))
    else:
        rows = torch.tensor(list(constrained), device=logits.device)
        logits[rows] = logits[rows].masked_fill(forbidden, float("-inf"))
    return errors
