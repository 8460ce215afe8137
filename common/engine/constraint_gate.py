"""What an engine does about a sequence's constraint: compile, wait, bind. Holds no sequence."""

from __future__ import annotations

from collections.abc import Callable

from common.engine.constraint_compiler import ConstraintCompiler
from common.engine.constraint_state import ConstraintState
from common.engine.sequence import Sequence
from common.errors import BadRequest, XpydError
from common.request import Constraint


class ConstraintGate:
    def __init__(self, compiler: ConstraintCompiler | None, eos_token_ids: frozenset[int]) -> None:
        """Without a compiler every constraint is refused."""
        self._compiler = compiler
        self._eos_token_ids = eos_token_ids

    def prepare(self, constraint: Constraint) -> None:
        """Compile it, for a request that is still to come."""
        if self._compiler is not None:
            self._compiler.submit(constraint)

    def enter(self, sequence: Sequence, constraint: Constraint) -> None:
        """Start with its compilation, or with the outcome. Raises what refuses the constraint."""
        if self._compiler is None:
            raise BadRequest(f"{constraint.field} is not supported here", constraint.field)
        sequence.compilation = self._compiler.submit(constraint)
        self.bind(sequence)

    def bind(self, sequence: Sequence) -> bool:
        """Give the sequence its state, as its output so far left it. False: not compiled yet."""
        compilation, constraint = sequence.compilation, sequence.params.constraint
        assert compilation is not None and constraint is not None
        outcome = compilation.outcome
        if outcome is None:
            return False
        if isinstance(outcome, XpydError):
            raise type(outcome)(outcome.message, outcome.param)
        may_end = bool(self._eos_token_ids) and not sequence.params.ignore_eos
        params = sequence.params
        limits_tokens = params.logit_bias or params.bad_words or params.allowed_token_ids
        sequence.constraint = ConstraintState(
            outcome,
            may_end=may_end,
            field=constraint.field,
            max_tokens=None if limits_tokens else params.max_tokens,
        )
        sequence.constraint.catch_up(sequence.output_tokens)
        sequence.compilation = None
        return True

    def notify_with(self, wake_up: Callable[[], None]) -> None:
        """Called, in any thread, when something has been compiled."""
        if self._compiler is not None:
            self._compiler.on_outcome = wake_up

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()
