"""Rows of logits made such that their argmax is a draw from them: temperature, cuts, noise.

The largest of logit + Gumbel noise is a draw from the softmax (Gumbel-max: Yellott 1977); the noise
is a pure function of (seed, position, token id). On a GPU nothing here waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.engine.truncation import cut_off
from common.request import SamplingParams
from kernels.noise import gumbel, gumbel_at

MIN_TEMPERATURE = 1e-5  # below, dividing would overflow; the answer is the greedy one long before


def is_cut(params: SamplingParams) -> bool:
    """Does what a token gets depend on which others are left?"""
    return params.temperature != 0.0 and (
        params.top_p != 1.0 or params.top_k != 0 or params.min_p != 0.0
    )


def prepare_draw(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> None:
    """In place, where the temperature is not 0; greedy rows stay as they are.

    logits:     [rows, vocab] float32
    positions:  of the token that each row is about
    """
    rows = [i for i, p in enumerate(params) if p.temperature != 0.0]
    if not rows:
        return
    if len(rows) == len(params):
        _draw(logits, params, positions)
        return
    index = _tensor(rows, torch.int64, logits.device)
    drawn = logits[index]
    _draw(drawn, [params[i] for i in rows], [positions[i] for i in rows])
    logits[index] = drawn


def _draw(x: Tensor, params: list[SamplingParams], positions: list[int]) -> None:
    device = x.device
    temperatures = [max(p.temperature, MIN_TEMPERATURE) for p in params]
    x /= _tensor(temperatures, torch.float32, device)[:, None]
    seeds = _tensor([p.seed for p in params], torch.int64, device)
    places = _tensor(positions, torch.int64, device)
    some = [i for i, p in enumerate(params) if is_cut(p)]
    if not some:
        x += gumbel(seeds, places, x.shape[1])
    elif len(some) == len(params):
        _draw_cut(x, params, seeds, places)
    else:
        whole = _tensor([i for i, p in enumerate(params) if not is_cut(p)], torch.int64, device)
        x[whole] += gumbel(seeds[whole], places[whole], x.shape[1])
        index = _tensor(some, torch.int64, device)
        kept = x[index]
        _draw_cut(kept, [params[i] for i in some], seeds[index], places[index])
        x[index] = kept


def _draw_cut(x: Tensor, params: list[SamplingParams], seeds: Tensor, positions: Tensor) -> None:
    min_p = _tensor([p.min_p for p in params], torch.float32, x.device)
    top_k = _tensor([p.top_k for p in params], torch.int64, x.device)
    top_p = _tensor([p.top_p for p in params], torch.float32, x.device)
    x.masked_fill_(x < cut_off(x, min_p, top_k, top_p)[:, None], float("-inf"))
    _add_noise(x, seeds, positions)


def _add_noise(x: Tensor, seeds: Tensor, positions: Tensor) -> None:
    """Gumbel noise where something is left: usually a handful of tokens per row. A GPU makes all of
    it in less time than it would take to hear how many these are."""
    is_left = x > float("-inf")
    if x.is_cuda or int(is_left.sum()) * 32 > x.numel():  # where computing all of it costs less
        x += gumbel(seeds, positions, x.shape[1])
    else:
        rows, token_ids = is_left.nonzero(as_tuple=True)
        x[rows, token_ids] += gumbel_at(seeds[rows], positions[rows], token_ids[:, None])[:, 0]


def _tensor(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
