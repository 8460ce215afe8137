"""Makes transformers' elementwise functions independent of what shares the batch, on a CPU.

torch computes most of a tensor with vector instructions and what is left over with scalar ones, and
the two round differently for anything like `exp`. What is left over depends on the number of rows
and of threads. Here such functions see whole vectors only, in pieces too small to be divided among
threads. CUDA needs none of this: there an element's result depends on the element alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

VECTOR = 64  # elements; a multiple of every unrolled vector loop
PIECE = 16384  # elements; torch divides from 32768 on

INEXACT: frozenset[Any] = frozenset(
    [
        functional.silu,
        functional.gelu,
        functional.softplus,
        functional.sigmoid,
        functional.tanh,
        *(getattr(torch, name) for name in ("sigmoid", "tanh", "exp", "erf", "sin", "cos")),
        *(getattr(Tensor, name) for name in ("sigmoid", "tanh", "exp", "erf", "sin", "cos")),
    ]
)


class RowInvariantFunctions(TorchFunctionMode):
    """While the `with` lasts, the functions in `INEXACT` are computed piece by piece."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in INEXACT or args[0].is_cuda:
            return function(*args, **kwargs)
        return in_pieces(lambda part: function(part, *args[1:], **kwargs), args[0])


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` for an elementwise function of one tensor."""
    count = x.numel()
    padded = x.new_zeros(-(-count // VECTOR) * VECTOR)
    padded[:count] = x.reshape(-1)
    pieces = [function(part) for part in torch.split(padded, PIECE)]
    return torch.cat(pieces)[:count].view(x.shape) if pieces else function(x)
