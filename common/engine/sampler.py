"""Logits to token ids. What a row becomes depends on that row alone, bit for bit.

Order: log-probabilities of the raw logits; the rare edits (`logit_edits.py`); constraints
(`constraint_state.py`); penalties; temperature; min_p, top_k, top_p (`truncation.py`); then the
largest of logit + Gumbel noise, which is a draw from the softmax (Gumbel-max: Yellott 1977). The
noise is a pure function of (seed, position, token id). float32 throughout.

A constraint's mask is made late where that changes no bit: forbidding tokens does not change the
others, so the largest of all is also the largest of those that are allowed, if it is one of them.
Only a row whose choice its grammar refuses needs the mask. Not so where min_p, top_k or top_p have
to know what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.engine.constraint_state import TokenMasks
from common.engine.draw import is_cut, prepare_draw
from common.engine.logit_edits import LogitEdits, needs_edits
from common.engine.penalties import PenaltyCounts, apply_penalties, needs_penalties
from common.engine.sequence import Sequence
from common.errors import BadRequest, XpydError
from common.request import TokenLogprob
from kernels.sampling import best, log_softmax

_NO_TOKEN = "the model's output allows no token"


@dataclass(frozen=True, slots=True)
class Samples:
    """One entry per row."""

    token_ids: list[int]  # meaningless where there is an error
    logprobs: dict[int, TokenLogprob]  # by row, where asked for
    errors: dict[int, XpydError]  # by row


@dataclass(frozen=True, slots=True)
class DeviceSamples:
    """The same, still on the device and perhaps not computed yet."""

    token_ids: Tensor  # [rows] int64
    is_finite: Tensor  # [rows] bool: False where no token is possible

    def read(self) -> Samples:
        """Waits for the device."""
        token_ids: list[int] = self.token_ids.tolist()
        fine = self.is_finite.tolist()
        errors: dict[int, XpydError] = {
            i: XpydError(_NO_TOKEN) for i, is_fine in enumerate(fine) if not is_fine
        }
        return Samples(token_ids, {}, errors)


class Sampler:
    def __init__(self, eos_token_ids: frozenset[int], device: torch.device) -> None:
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._masks = TokenMasks(device)

    def prepare(self, sequence: Sequence) -> None:
        """Once per sequence, before its first `sample`."""
        if needs_edits(sequence.params):
            sequence.edits = LogitEdits(sequence, self._eos_token_ids, self._device)
        if needs_penalties(sequence.params):
            sequence.penalties = PenaltyCounts(sequence.params, sequence.num_prompt)
        params = sequence.params
        sequence.is_plain = (
            params.is_greedy
            and params.logprobs is None
            and params.constraint is None
            and sequence.edits is None
            and sequence.penalties is None
        )

    def choose(self, logits: Tensor, sequences: list[Sequence], num_ahead: int) -> DeviceSamples:
        """The same as `sample`, without waiting, for sequences without rare options or logprobs.

        num_ahead:  tokens of each that have been launched, but that nobody has seen
        """
        positions = [sequence.num_tokens + num_ahead for sequence in sequences]
        prepare_draw(logits, [sequence.params for sequence in sequences], positions)
        token_ids = logits.argmax(dim=-1)
        is_finite = logits.gather(1, token_ids[:, None])[:, 0].isfinite()
        return DeviceSamples(token_ids, is_finite)

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> Samples:
        """Choose each sequence's next token. logits: [rows, vocab] float32, overwritten."""
        if not sequences:
            return Samples([], {}, {})
        if all(sequence.is_plain for sequence in sequences):
            token_ids, broken = best(logits)
            return Samples(token_ids, {}, {row: _no_token(sequences[row]) for row in broken})
        wanting = [i for i, s in enumerate(sequences) if s.params.logprobs is not None]
        raw = logits[wanting] if wanting else None
        constrained = {i: s.constraint for i, s in enumerate(sequences) if s.constraint is not None}
        early = {i: c for i, c in constrained.items() if is_cut(sequences[i].params)}
        errors = _edit(logits, sequences)
        if early:
            errors |= self._masks.apply(logits, early)
        _penalise(logits, sequences)
        prepare_draw(logits, [s.params for s in sequences], [s.num_tokens for s in sequences])
        token_ids, broken = best(logits)
        late = {
            i: constraint
            for i, constraint in constrained.items()
            if i not in early and not constraint.allows(token_ids[i])
        }
        if late:
            errors |= self._masks.apply(logits, late)
            token_ids, broken = best(logits)
        for i, constraint in constrained.items():
            if i not in errors:
                token_ids[i] = constraint.keep_room(token_ids[i])
        for i in broken:
            errors.setdefault(i, _no_token(sequences[i]))
        logprobs: dict[int, TokenLogprob] = {}
        if raw is not None:
            num_top = [sequences[i].params.logprobs or 0 for i in wanting]
            named = [sequences[i].params.logprob_token_ids for i in wanting]
            described = describe(raw, [token_ids[i] for i in wanting], num_top, named)
            logprobs = dict(zip(wanting, described, strict=True))
        return Samples(token_ids, logprobs, errors)


def _no_token(sequence: Sequence) -> XpydError:
    constraint = sequence.params.constraint
    if constraint is None:
        return XpydError(_NO_TOKEN)
    return BadRequest(
        f"{constraint.field} together with the other limits on tokens (bad_words, logit_bias, "
        "allowed_token_ids, ignore_eos, min_tokens) allows no token here",
        constraint.field,
    )


def _edit(logits: Tensor, sequences: list[Sequence]) -> dict[int, XpydError]:
    """Rare options, in place. An error ends the request that asked for it."""
    errors: dict[int, XpydError] = {}
    for i, sequence in enumerate(sequences):
        if sequence.edits is not None:
            try:
                sequence.edits.apply(logits[i])
            except (IndexError, RuntimeError, ValueError) as error:
                errors[i] = XpydError(f"sampling failed: {error}")
    return errors


def _penalise(logits: Tensor, sequences: list[Sequence]) -> None:
    penalised: dict[int, PenaltyCounts] = {}
    for i, sequence in enumerate(sequences):
        if sequence.penalties is not None:
            sequence.penalties.catch_up(sequence.tokens[: sequence.num_tokens])
            penalised[i] = sequence.penalties
    if penalised:
        apply_penalties(logits, penalised)


def describe(
    logits: Tensor,
    token_ids: list[int],
    num_top: list[int],
    named: list[tuple[int, ...]] | None = None,
) -> list[TokenLogprob]:
    """Log-probability and rank of one token per row, and the row's `num_top` best, or those that
    are `named` for it."""
    logprobs = log_softmax(logits)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    ranks = (logits > logits.gather(1, ids)).sum(dim=-1) + 1
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(token_ids)
    for count in set(num_top) - {0}:  # one call per count: ties must not depend on other rows
        rows = [i for i, n in enumerate(num_top) if n == count]
        values, best = logprobs[rows].topk(min(count, logits.shape[1]), dim=-1)
        for row, row_ids, row_values in zip(rows, best.tolist(), values.tolist(), strict=True):
            tops[row] = tuple(zip(row_ids, row_values, strict=True))
    for row, row_named in enumerate(named or ()):
        if row_named:
            found: list[float] = logprobs[row, list(row_named)].tolist()
            tops[row] = tuple(zip(row_named, found, strict=True))
    chosen: list[float] = logprobs.gather(1, ids)[:, 0].tolist()
    return [
        TokenLogprob(logprob, rank, top)
        for logprob, rank, top in zip(chosen, ranks.tolist(), tops, strict=True)
    ]
