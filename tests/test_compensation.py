import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.algorithms.compensation import compensated


def _pair(seed: int, tokens: int = 200, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    exact = rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width))
    return exact, exact * 0.9 + 0.1 * rng.normal(size=(tokens, width))


def _moments(exact: np.ndarray, read: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    cross, hessian = exact.T @ read / len(read), read.T @ read / len(read)
    return torch.from_numpy(cross), torch.from_numpy(hessian)


def test_equal_inputs_leave_the_weight_bit_for_bit() -> None:
    weight = torch.randn(3, 8)
    _, hessian = _moments(*_pair(0))
    assert torch.equal(compensated(weight, hessian, hessian, 0.1), weight)


def test_halved_inputs_take_twice_the_weight() -> None:
    weight, cross, hessian = torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([[1.0]])
    assert float(compensated(weight, cross, hessian, 1e-9)) == pytest.approx(6.0)
    # lambda = 1: (2 + 1) / (1 + 1) of the weight
    assert float(compensated(weight, cross, hessian, 1.0)) == pytest.approx(4.5)


@given(st.integers(0, 1000), st.floats(0.001, 10.0))
def test_it_is_numpys_ridge_regression(seed: int, damping: float) -> None:
    exact, read = _pair(seed)
    weight = np.random.default_rng(seed + 1).normal(size=(4, 8)).astype(np.float32)
    strength = damping * np.mean(read**2)
    # The regression as least squares over stacked rows, without any moments.
    rows = np.concatenate([read / np.sqrt(len(read)), np.sqrt(strength) * np.eye(8)])
    wanted = np.concatenate([exact @ weight.T / np.sqrt(len(read)), np.sqrt(strength) * weight.T])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    found = compensated(torch.from_numpy(weight), *_moments(exact, read), damping)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 1000))
def test_the_error_of_the_output_falls(seed: int) -> None:
    exact, read = _pair(seed)
    weight = np.random.default_rng(seed + 1).normal(size=(4, 8)).astype(np.float32)
    after = compensated(torch.from_numpy(weight), *_moments(exact, read), 0.01).numpy()
    before = np.square(read @ weight.T - exact @ weight.T).mean()
    assert np.square(read @ after.T - exact @ weight.T).mean() <= before * (1 + 1e-6)
