"""The straight-through gradients of ranges: by hand, against differences, and their values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit.numerics import (
    Grid,
    asymmetric_grid,
    dequantize,
    learned_fake_quantize,
    quantize,
    symmetric_grid,
)
from tests.reference.learned_ranges import surrogate_gradients, value

SYMMETRIC = st.sampled_from([symmetric_grid(8), symmetric_grid(4)])
UNSIGNED = st.sampled_from([asymmetric_grid(8), asymmetric_grid(4)])
SEEDS = st.integers(0, 2**31)


def _gradient(tensor: Tensor) -> np.ndarray:
    assert tensor.grad is not None
    found: np.ndarray = tensor.grad.numpy()
    return found


def _matrix(seed: int, grid: Grid, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Values [6, 3, 8], some beyond the grid, and scales [6, 1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(6, 1, 1, generator=generator, dtype=dtype) + 0.1
    x = torch.randn(6, 3, 8, generator=generator, dtype=dtype) * scale * grid.qmax
    return x, scale


@given(SEEDS, SYMMETRIC)
@settings(max_examples=20, deadline=None)
def test_values_of_a_weight_are_those_of_its_codes(seed: int, grid: Grid) -> None:
    x, scale = _matrix(seed, grid)
    zero = torch.zeros((), dtype=grid.dtype)
    found = learned_fake_quantize(x, scale.requires_grad_(), torch.zeros(()), grid)
    codes = quantize(x, scale.detach(), zero, grid)
    assert torch.equal(found, dequantize(codes, scale.detach(), zero))


@given(SEEDS, UNSIGNED, st.floats(-3, 260))
@settings(max_examples=20, deadline=None)
def test_values_of_an_input_are_those_of_its_codes(seed: int, grid: Grid, zero: float) -> None:
    x, _ = _matrix(seed, grid)
    scale = torch.tensor(0.3, requires_grad=True)
    real = torch.tensor(zero, requires_grad=True)
    found = learned_fake_quantize(x, scale, real, grid)
    whole = torch.tensor(zero).round().clamp(grid.qmin, grid.qmax).to(grid.dtype)
    codes = quantize(x, scale.detach(), whole, grid)
    assert torch.equal(found, dequantize(codes, scale.detach(), whole))


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_values_of_two_levels_are_integers_times_the_scale(seed: int) -> None:
    grid = symmetric_grid(4)
    x, scale = _matrix(seed, grid)
    multipliers = torch.arange(1, 19).view(6, 3, 1)
    found = learned_fake_quantize(x, scale, torch.zeros(()), grid, multipliers.float())
    codes = quantize(x, scale * multipliers, torch.zeros((), dtype=grid.dtype), grid)
    assert torch.equal(found, (codes * multipliers).float() * scale)


@given(SEEDS, SYMMETRIC)
@settings(max_examples=20, deadline=None)
def test_gradients_of_a_weight_are_those_of_the_surrogate(seed: int, grid: Grid) -> None:
    x, scale = _matrix(seed, grid, torch.float64)
    multipliers = torch.arange(1, 19, dtype=torch.float64).view(6, 3, 1)
    x = x * multipliers
    upstream = torch.randn_like(x)
    x.requires_grad_()
    scale.requires_grad_()
    found = learned_fake_quantize(x, scale, torch.zeros(()).double(), grid, multipliers)
    found.backward(upstream)
    full = np.broadcast_arrays(x.detach(), scale.detach(), multipliers)
    to_x, to_s, _ = surrogate_gradients(full[0], full[1], 0.0, full[2], (grid.qmin, grid.qmax))
    g = upstream.numpy()
    np.testing.assert_allclose(_gradient(x), g * to_x, rtol=1e-6, atol=1e-7)
    expected = (g * to_s).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(_gradient(scale), expected, rtol=1e-5, atol=1e-5)
    places = zip(*map(np.ravel, full), strict=True)
    each = [value(w, s, 0.0, m, grid.qmin, grid.qmax) for w, s, m in places]
    np.testing.assert_allclose(found.detach().numpy().ravel(), each, rtol=1e-12)


@given(SEEDS, UNSIGNED, st.floats(0.6, 14.4))
@settings(max_examples=20, deadline=None)
def test_gradients_of_an_input_are_those_of_the_surrogate(
    seed: int, grid: Grid, zero: float
) -> None:
    x, _ = _matrix(seed, grid, torch.float64)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    real = torch.tensor(zero, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    x.requires_grad_()
    learned_fake_quantize(x, scale, real, grid).backward(upstream)
    ones = np.ones(x.shape)
    to_x, to_s, to_z = surrogate_gradients(
        x.detach().numpy(), 0.3 * ones, zero, ones, (grid.qmin, grid.qmax)
    )
    g = upstream.numpy()
    np.testing.assert_allclose(_gradient(x), g * to_x, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(_gradient(scale), (g * to_s).sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_gradient(real), (g * to_z).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "to_x", "to_s"), [(1.1, 1.0, 2 - 2.2), (9.0, 0.0, 7.0), (-9.0, 0.0, -7.0)]
)
def test_the_documented_case(x: float, to_x: float, to_s: float) -> None:
    values = torch.tensor([x], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    learned_fake_quantize(values, scale, torch.zeros(()), symmetric_grid(4)).backward()
    assert values.grad is not None
    assert scale.grad is not None
    assert float(values.grad) == to_x
    assert float(scale.grad) == pytest.approx(to_s, rel=1e-6)


def test_a_zero_point_gets_a_gradient_from_clipped_values_alone() -> None:
    zero = torch.tensor(2.0, requires_grad=True)
    grid = asymmetric_grid(4)  # 0..15: with scale 0.5 and zero point 2 the values -1..6.5
    x = torch.tensor([-3.0, 0.3, 9.0])
    found = learned_fake_quantize(x, torch.tensor(0.5), zero, grid)
    found.backward(torch.tensor([1.0, 10.0, 100.0]))
    assert found.tolist() == [-1.0, 0.5, 6.5]
    assert zero.grad is not None
    assert float(zero.grad) == -0.5 * (1.0 + 100.0)
