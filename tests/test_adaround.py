import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from quantkit.algorithms.adaround import AdaRound
from quantkit.algorithms.nearest import Nearest
from quantkit.numerics import dequantize, symmetric_grid
from tests.reference.rounding import best_up_or_down, output_error

GRID = symmetric_grid(4)
ONE = torch.ones(1, 1)


def _problem(columns: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight [6, columns], scale that clips some of it, and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ (mix + 0.3)
    return weight, 0.8 * weight.abs().amax(1, keepdim=True) / GRID.qmax, inputs


def _hessian(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def _error(weight: Tensor, codes: Tensor, scale: Tensor, inputs: Tensor) -> np.ndarray:
    return output_error(weight.numpy(), codes.numpy(), scale.numpy(), inputs.numpy())


def test_two_columns_by_hand() -> None:
    # D H Dᵀ: down and down 0.466, up and down 0.126, down and up 0.146, up and up 1.368 or so.
    hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    codes = AdaRound().round(torch.tensor([[0.4, 0.3]]), ONE, GRID, hessian)
    assert codes.tolist() == [[1, 0]]
    assert codes.dtype == torch.int8


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16), st.integers(1, 30), st.integers(0, 999))
def test_codes_lie_next_to_the_weights_and_are_no_worse_than_nearest(
    columns: int, tokens: int, seed: int
) -> None:
    weight, scale, inputs = _problem(columns, tokens, seed)
    codes = AdaRound(steps=30).round(weight, scale, GRID, _hessian(inputs))
    quotient = (weight / scale).numpy()
    below, above = np.clip(np.floor(quotient), -7, 7), np.clip(np.ceil(quotient), -7, 7)
    assert np.all((codes.numpy() == below) | (codes.numpy() == above))
    nearest = Nearest().round(weight, scale, GRID, None)
    ours, theirs = (_error(weight, c, scale, inputs) for c in (codes, nearest))
    assert np.all(ours <= theirs * (1.0 + 1e-5) + 1e-9)


def test_it_comes_near_to_the_best_of_all_choices() -> None:
    weight, scale, inputs = _problem(8, 200, 0)
    hessian = _hessian(inputs)
    codes = AdaRound(steps=500).round(weight, scale, GRID, hessian)
    nearest = Nearest().round(weight, scale, GRID, None)
    best = best_up_or_down(weight.numpy(), scale.numpy(), hessian.numpy(), GRID.qmax).sum()
    ours, theirs = (_error(weight, c, scale, inputs).sum() for c in (codes, nearest))
    assert best * (1.0 - 1e-5) <= ours < best + 0.3 * (theirs - best)


def test_it_beats_nearest_clearly_on_correlated_inputs() -> None:
    weight, scale, inputs = _problem(64, 500, 1)
    codes = AdaRound(steps=300, lr=0.03).round(weight, scale, GRID, _hessian(inputs))
    nearest = Nearest().round(weight, scale, GRID, None)
    ours, theirs = (_error(weight, c, scale, inputs).sum() for c in (codes, nearest))
    assert ours < 0.5 * theirs


def test_scales_of_groups() -> None:
    weight, _, inputs = _problem(16, 100, 2)
    bound = weight.unflatten(1, (-1, 4)).abs().amax(2) / GRID.qmax
    scale = bound.repeat_interleave(4, dim=1)
    codes = AdaRound(steps=200).round(weight, scale, GRID, _hessian(inputs))
    nearest = Nearest().round(weight, scale, GRID, None)
    ours, theirs = (_error(weight, c, scale, inputs).sum() for c in (codes, nearest))
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_on_the_grid_stay(bits: int) -> None:
    grid = symmetric_grid(bits)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(grid.qmin, grid.qmax + 1, (4, 12), generator=generator, dtype=torch.int8)
    codes[:, 0] = grid.qmax  # one more would not fit into int8
    scale = torch.rand(4, 1, generator=generator) + 0.01
    weight = dequantize(codes, scale, torch.tensor(0))
    hessian = _hessian(torch.randn(30, 12, generator=generator) + 1.0)
    assert torch.equal(AdaRound(steps=20).round(weight, scale, grid, hessian), codes)


def test_weights_on_the_grid_stay_beside_others_that_move() -> None:
    weight, scale, inputs = _problem(32, 200, 7)
    exact = Nearest().round(weight, scale, GRID, None)[:, ::2]
    weight[:, ::2] = dequantize(exact, scale, torch.tensor(0))
    codes = AdaRound(steps=200, lr=0.05).round(weight, scale, GRID, _hessian(inputs))
    assert torch.equal(codes[:, ::2], exact)
    assert not torch.equal(codes, Nearest().round(weight, scale, GRID, None))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_gives_the_same_codes_in_every_mode(mode: type[torch.inference_mode]) -> None:
    weight, scale, inputs = _problem(12, 50, 3)
    learn = AdaRound(steps=50, lr=0.05)
    expected = learn.round(weight, scale, GRID, _hessian(inputs))
    with mode():
        # These are inference tensors themselves, which autograd refuses.
        tensors = weight.clone(), scale.clone(), _hessian(inputs)
        codes = learn.round(tensors[0], tensors[1], GRID, tensors[2])
    assert torch.equal(codes, expected)
    assert not codes.requires_grad


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_lambda_means_the_same_for_inputs_and_weights_of_any_size(factor: float) -> None:
    weight, scale, inputs = _problem(12, 50, 4)
    learn = AdaRound(steps=100, lr=0.05)
    expected = learn.round(weight, scale, GRID, _hessian(inputs))
    codes = learn.round(weight * factor, scale * factor, GRID, _hessian(inputs * factor))
    assert torch.equal(codes, expected)


def test_inputs_that_are_always_zero_leave_the_nearest_codes() -> None:
    weight, scale, _ = _problem(6, 1, 5)
    codes = AdaRound(steps=5).round(weight, scale, GRID, torch.zeros(6, 6))
    assert torch.equal(codes, Nearest().round(weight, scale, GRID, None))


def test_warm_up_waits_with_the_regularisation() -> None:
    # Without it nothing leaves the start, where the error of unclipped weights is 0.
    weight, _, inputs = _problem(6, 50, 6)
    scale = weight.abs().amax(1, keepdim=True) / GRID.qmax
    codes = AdaRound(steps=50, warmup=0.99).round(weight, scale, GRID, _hessian(inputs))
    assert torch.equal(codes, Nearest().round(weight, scale, GRID, None))


def test_mistakes_of_the_caller() -> None:
    for hessian in (None, torch.eye(3)):
        with pytest.raises(ValueError, match="of 2 inputs"):
            AdaRound().round(torch.ones(1, 2), ONE, GRID, hessian)
    for values in ({"steps": 0}, {"lr": 0.0}, {"beta": (0.5, 2.0)}, {"warmup": 1.0}):
        with pytest.raises(ValidationError):
            AdaRound(**values)
    assert AdaRound.needs_hessian
