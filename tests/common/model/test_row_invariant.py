from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from common.model.row_invariant import RowInvariantFunctions


@pytest.mark.parametrize("function", [functional.silu, functional.gelu, torch.tanh, torch.cos])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_see_the_others(function, dtype):
    """Row lengths that leave odd ends, and enough of them that torch would use two threads."""
    torch.set_num_threads(2)
    x = torch.randn(900, 81, generator=torch.Generator().manual_seed(0)).to(dtype)
    with RowInvariantFunctions():
        together = function(x)
        alone = torch.cat([function(row) for row in x.split([1, 37, 1, 861])])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, function(x))


def test_the_trouble_is_real():
    """If this fails, torch has become row-invariant and the module can go."""
    x = torch.randn(900, 81, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([functional.silu(row) for row in x.split(1)])
    assert not torch.equal(functional.silu(x), alone)


def test_empty_and_strided_inputs():
    with RowInvariantFunctions():
        assert torch.tanh(torch.zeros(0, 5)).shape == (0, 5)
        x = torch.randn(6, 10)[:, ::2]
        torch.testing.assert_close(functional.gelu(x, approximate="tanh"), torch.nn.GELU("tanh")(x))
