"""min_p, top_k, top_p: where each row of logits is cut off, which depends on that row alone.

A row keeps logits ≥ its cut, so tokens as likely as the last kept one stay too. Most cuts lie among
the best few hundred logits; only rows that need more are sorted whole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.choice import triton_serves

NUM_BEST = 256
_NONE = float("-inf")


def cut_off(x: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit that stays, per row: min_p, of its rest top_k, of that rest top_p.

    x:      [rows, vocab] float32, temperature applied
    min_p:  [rows] float32, 0 is off: at least so likely, relative to the likeliest
    top_k:  [rows] int64, 0 is off: so many of the likeliest
    top_p:  [rows] float32, 1 is off: the fewest of the likeliest that together reach it
    """
    if triton_serves(x, min_p, top_k, top_p):
        from kernels.gpu.truncation import cut_off_triton

        return cut_off_triton(x, min_p, top_k, top_p)
    num_best = min(NUM_BEST, x.shape[1])
    best, ids = x.topk(num_best, dim=-1)
    cut = _floor(best, min_p, top_k)
    is_wide = top_k > num_best  # this top_k cannot be seen from here
    is_inside = (best[:, -1] < cut) | (num_best == x.shape[1])  # all that is kept is in `best`
    probs = best.masked_fill(best < cut[:, None], _NONE).softmax(dim=-1)
    is_open = (cut == _NONE) & ~is_wide & ~is_inside  # probabilities are over the whole row
    open_rows = (is_open & (top_p < 1)).nonzero()[:, 0]
    if len(open_rows):
        probs[open_rows] = x[open_rows].softmax(dim=-1).gather(1, ids[open_rows])
    nucleus, is_reached = _nucleus(best, probs, top_p)
    cut = torch.maximum(cut, torch.where(top_p < 1, nucleus, _NONE))
    is_known = is_inside | (is_open & is_reached) | ((top_p == 1) & ~is_wide)
    rest = (~is_known).nonzero()[:, 0]
    if len(rest):
        cut[rest] = _cut_off_sorted(x[rest], min_p[rest], top_k[rest], top_p[rest])
    return cut


def _cut_off_sorted(x: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    ordered = _sort_descending(x)
    cut = _floor(ordered, min_p, top_k)
    probs = ordered.masked_fill(ordered < cut[:, None], _NONE).softmax(dim=-1)
    nucleus, _ = _nucleus(ordered, probs, top_p)
    return torch.maximum(cut, torch.where(top_p < 1, nucleus, _NONE))


def _floor(ordered: Tensor, min_p: Tensor, top_k: Tensor) -> Tensor:
    """What min_p and top_k cut; a top_k beyond the given candidates is left out."""
    num_given = ordered.shape[1]
    last = (top_k - 1).clamp(0, num_given - 1)
    has_top_k = (top_k > 0) & (top_k <= num_given)
    top_k_cut = torch.where(has_top_k, ordered.gather(1, last[:, None])[:, 0], _NONE)
    return torch.maximum(top_k_cut, ordered[:, 0] + min_p.log())


def _nucleus(ordered: Tensor, probs: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The last logit of each nucleus, and whether the given candidates reach top_p at all."""
    num_before = (probs.cumsum(dim=-1) < top_p[:, None]).sum(dim=-1)
    last = num_before.clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, last[:, None])[:, 0], num_before < ordered.shape[1]


def _sort_descending(x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return x.sort(dim=-1, descending=True).values
    ascending = torch.from_numpy(np.sort(x.numpy(), axis=-1))  # 4 to 9 times as fast as torch's
    return ascending.flip(-1)
