"""Fake quantization of many matrices at once against the definition, one by one."""

import os

import pytest
import torch

from quantkit.kernels.fake_weights import fake_quantize_weights, fake_quantize_weights_reference
from quantkit.numerics import symmetric_grid
from tests.interpreter import correct_bfloat16

ROWS, COLUMNS = (3, 1, 7, 5), 40


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_each(bits: int, kind: torch.dtype) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        correct_bfloat16()
    generator = torch.Generator().manual_seed(3)
    grid = symmetric_grid(bits)
    weights = [torch.randn((rows, COLUMNS), generator=generator) for rows in ROWS]
    scales = torch.rand(sum(ROWS), generator=generator) / grid.qmax + 0.05 / grid.qmax
    groups = torch.randint(1, 17, (sum(ROWS), 5), generator=generator).to(torch.int8)
    multipliers = groups if bits == 4 else None
    upstream = [torch.randn(weight.shape, generator=generator) for weight in weights]
    found = []
    for function in (fake_quantize_weights, fake_quantize_weights_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in (scales, *weights)]
        values = function(leaves[1:], leaves[0], multipliers, grid, kind)
        assert all(value.dtype == kind for value in values)
        products = [(v.float() * u).sum() for v, u in zip(values, upstream, strict=True)]
        total = torch.stack(products).sum()
        found.append([values, torch.autograd.grad(total, leaves)])
    (ours, made), (theirs, expected) = found
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for one, other in zip(made[1:], expected[1:], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(made[0], expected[0], rtol=1e-4, atol=1e-3)
    clipped = torch.cat([gradient.flatten() for gradient in made[1:]]) == 0
    assert 0 < clipped.float().mean() < 1
