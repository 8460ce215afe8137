"""Logits to token ids. What a row becomes depends on that row alone, bit for bit.

Order: log-probabilities of the raw logits; the rare edits (`logit_edits.py`); temperature; min_p;
top_k; top_p; then the largest of logit + Gumbel noise (Gumbel-max: Yellott 1977), which is a draw
from the softmax. The noise is a pure function of (seed, position, token id). float32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.engine.logit_edits import LogitEdits, needs_edits
from common.engine.sequence import Sequence
from common.errors import XpydError
from common.request import TokenLogprob
from kernels.noise import gumbel

MIN_TEMPERATURE = 1e-5  # below, dividing would overflow; the answer is the greedy one long before
TOP_P_CANDIDATES = 512  # sorted first; only rows whose nucleus is larger are sorted whole


@dataclass(frozen=True, slots=True)
class Samples:
    """One entry per row."""

    token_ids: list[int]  # meaningless where there is an error
    logprobs: dict[int, TokenLogprob]  # by row, where asked for
    errors: dict[int, XpydError]  # by row


class Sampler:
    def __init__(self, eos_token_ids: frozenset[int], device: torch.device) -> None:
        self._eos_token_ids = eos_token_ids
        self._device = device

    def prepare(self, sequence: Sequence) -> None:
        """Once per sequence, before its first `sample`."""
        if needs_edits(sequence.params):
            sequence.edits = LogitEdits(sequence, self._eos_token_ids, self._device)

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> Samples:
        """Choose each sequence's next token. logits: [rows, vocab] float32, overwritten."""
        wanting = [i for i, s in enumerate(sequences) if s.params.logprobs is not None]
        raw = logits[wanting] if wanting else None
        errors: dict[int, XpydError] = {}
        for i, sequence in enumerate(sequences):
            if sequence.edits is not None:
                try:
                    sequence.edits.apply(logits[i])
                except (IndexError, RuntimeError, ValueError) as error:
                    errors[i] = XpydError(f"sampling failed: {error}")
        drawn = [i for i, sequence in enumerate(sequences) if sequence.params.temperature != 0.0]
        if drawn:
            _prepare_draw(logits, drawn, [sequences[i] for i in drawn])
        chosen = logits.argmax(dim=-1)
        is_finite = logits.gather(1, chosen[:, None])[:, 0].isfinite()
        token_ids: list[int] = chosen.tolist()
        for i, fine in enumerate(is_finite.tolist()):
            if not fine:
                errors.setdefault(i, XpydError("the model's output allows no token"))
        logprobs: dict[int, TokenLogprob] = {}
        if raw is not None:
            described = describe(
                raw,
                [token_ids[i] for i in wanting],
                [sequences[i].params.logprobs or 0 for i in wanting],
            )
            logprobs = dict(zip(wanting, described, strict=True))
        return Samples(token_ids, logprobs, errors)


def _prepare_draw(logits: Tensor, rows: list[int], sequences: list[Sequence]) -> None:
    """Make the rows such that their argmax is the draw; the other rows stay as they are."""
    params = [sequence.params for sequence in sequences]
    device = logits.device
    x = logits if len(rows) == len(logits) else logits[rows]
    temperature = torch.tensor([max(p.temperature, MIN_TEMPERATURE) for p in params], device=device)
    x /= temperature[:, None]
    for values, off, keep_only in (
        ([p.min_p for p in params], 0.0, keep_min_p),
        ([float(p.top_k) for p in params], 0.0, keep_top_k),
        ([p.top_p for p in params], 1.0, keep_top_p),
    ):
        using = [i for i, value in enumerate(values) if value != off]
        if using:
            limits = torch.tensor([values[i] for i in using], device=device)
            x[using] = keep_only(x[using], limits)
    seeds = torch.tensor([p.seed for p in params], dtype=torch.int64, device=device)
    positions = torch.tensor([s.num_tokens for s in sequences], device=device)
    x += gumbel(seeds, positions, x.shape[1])
    if x is not logits:
        logits[rows] = x


def keep_min_p(x: Tensor, min_p: Tensor) -> Tensor:
    """Forbid tokens less likely than `min_p` [rows] times the likeliest. x: [rows, vocab]."""
    least = x.amax(dim=-1) + min_p.log()
    return x.masked_fill(x < least[:, None], float("-inf"))


def keep_top_k(x: Tensor, top_k: Tensor) -> Tensor:
    """Keep the `top_k` [rows] largest logits, and what equals the last of them."""
    k = top_k.long().clamp(max=x.shape[1])
    best = x.topk(int(k.max()), dim=-1).values
    least = best.gather(1, k[:, None] - 1)
    return x.masked_fill(x < least, float("-inf"))


def keep_top_p(x: Tensor, top_p: Tensor) -> Tensor:
    """Keep the fewest tokens, likeliest first, whose probabilities reach `top_p` [rows].

    Tokens as likely as the last of them stay too.
    """
    probs = x.softmax(dim=-1)
    best, ids = x.topk(min(TOP_P_CANDIDATES, x.shape[1]), dim=-1)
    least, is_enough = _nucleus_edge(best, probs.gather(1, ids), top_p)
    if not bool(is_enough.all()):
        rows = (~is_enough).nonzero()[:, 0]
        ordered, ids = x[rows].sort(dim=-1, descending=True, stable=True)
        least[rows], _ = _nucleus_edge(ordered, probs[rows].gather(1, ids), top_p[rows])
    return x.masked_fill(x < least[:, None], float("-inf"))


def _nucleus_edge(ordered: Tensor, probs: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest kept logit per row, and whether the given candidates reach top_p at all."""
    num_before = (probs.cumsum(dim=-1) < top_p[:, None]).sum(dim=-1)
    last = num_before.clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, last[:, None])[:, 0], num_before < ordered.shape[1]


def describe(logits: Tensor, token_ids: list[int], num_top: list[int]) -> list[TokenLogprob]:
    """Log-probability and rank of one token per row, and the row's `num_top` best."""
    logprobs = logits.log_softmax(dim=-1)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    ranks = (logits > logits.gather(1, ids)).sum(dim=-1) + 1
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(token_ids)
    for count in set(num_top) - {0}:  # one call per count: ties must not depend on other rows
        rows = [i for i, n in enumerate(num_top) if n == count]
        values, best = logprobs[rows].topk(min(count, logits.shape[1]), dim=-1)
        for row, row_ids, row_values in zip(rows, best.tolist(), values.tolist(), strict=True):
            tops[row] = tuple(zip(row_ids, row_values, strict=True))
    chosen: list[float] = logprobs.gather(1, ids)[:, 0].tolist()
    return [
        TokenLogprob(logprob, rank, top)
        for logprob, rank, top in zip(chosen, ranks.tolist(), tops, strict=True)
    ]
