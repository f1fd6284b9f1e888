import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from quantkit.algorithms.gptq import Gptq
from quantkit.algorithms.nearest import Nearest
from quantkit.errors import RecipeError
from quantkit.numerics import dequantize, symmetric_grid
from tests.reference.rounding import column_by_column, output_error

GRID = symmetric_grid(4)
CORRELATED = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
ONE = torch.ones(1, 1)
QUICK = settings(deadline=None, max_examples=25)


def _weight(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _inputs(tokens: int, columns: int, seed: int, dead: int = 0) -> Tensor:
    """Correlated inputs [tokens, columns]; the first `dead` columns are 0, one is wide."""
    generator = torch.Generator().manual_seed(seed + 1)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x: Tensor = torch.randn(tokens, columns, generator=generator) @ (mix + 0.3)
    x[:, :dead] = 0.0
    x[:, -1] *= 20.0
    return x


def _hessian(inputs: Tensor) -> Tensor:
    hessian: Tensor = inputs.T.double() @ inputs.double() / len(inputs)
    return hessian


def _scale(weight: Tensor, group: int | None = None) -> Tensor:
    """Absmax scales: [out, 1], or [out, in] with those of groups of columns."""
    if group is None:
        return weight.abs().amax(1, keepdim=True) / GRID.qmax
    bound: Tensor = weight.unflatten(1, (-1, group)).abs().amax(2) / GRID.qmax
    return bound.repeat_interleave(group, dim=1)


def _error(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    error: Tensor = dequantize(codes, scale.double(), torch.tensor(0)) - weight
    rows: Tensor = ((error @ hessian.double()) * error).sum(1)
    return rows


PROBLEMS = {
    "columns": st.integers(1, 24),
    "tokens": st.integers(1, 40),  # fewer than columns: H has no full rank
    "dead": st.integers(0, 3),
    "seed": st.integers(0, 10_000),
}


def test_two_columns_by_hand() -> None:
    # Column 1: 0.4 -> 0, error -0.4. Damped U_12 = 0.9 / 1.01, so column 2 becomes
    # 0.4 + 0.4 * 0.891 = 0.756 -> 1. D H Dᵀ of [-0.4, 0.6] is 0.16 + 0.36 - 1.8 * 0.24.
    weight = torch.tensor([[0.4, 0.4]])
    codes = Gptq(sweeps=0).round(weight, ONE, GRID, CORRELATED)
    assert codes.tolist() == [[0, 1]]
    assert codes.dtype == torch.int8
    assert float(_error(weight, codes, ONE, CORRELATED)) == pytest.approx(0.088)
    nearest = Nearest().round(weight, ONE, GRID, None)
    assert nearest.tolist() == [[0, 0]]
    assert float(_error(weight, nearest, ONE, CORRELATED)) == pytest.approx(0.608)


def test_a_sweep_by_hand() -> None:
    # GPTQ: 0.45 -> 0, then 0.085 + 0.45 * 0.891 = 0.486 -> 0.
    # Sweep: column 1 becomes 0.45 + 0.085 * 0.9 = 0.5265 -> 1, column 2 then
    # 0.085 - 0.55 * 0.9 = -0.41 -> 0. The error falls from 0.2786 to 0.2256.
    weight = torch.tensor([[0.45, 0.085]])
    for sweeps, codes, error in ((0, [[0, 0]], 0.27858), (1, [[1, 0]], 0.22558)):
        got = Gptq(sweeps=sweeps).round(weight, ONE, GRID, CORRELATED)
        assert got.tolist() == codes
        assert float(_error(weight, got, ONE, CORRELATED)) == pytest.approx(error, rel=1e-4)


def test_activation_order_by_hand() -> None:
    # The second input is twice as large: its column is rounded first (0.4 -> 0), and the first
    # one makes up for it with 0.4 + 0.4 * 1.8 / 1.025 = 1.10 -> 1.
    weight, hessian = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 1.8], [1.8, 4.0]])
    assert Gptq(sweeps=0).round(weight, ONE, GRID, hessian).tolist() == [[1, 0]]
    given_order = Gptq(sweeps=0, order="given").round(weight, ONE, GRID, hessian)
    assert given_order.tolist() == [[0, 1]]


@QUICK
@given(
    st.integers(1, 24),
    st.sampled_from([Gptq(sweeps=0, block=7), Gptq(sweeps=0, block=7, order="given")]),
    st.booleans(),
    st.integers(0, 999),
)
def test_codes_equal_the_textbook_loop(columns: int, gptq: Gptq, groups: bool, seed: int) -> None:
    columns = 4 * columns if groups else columns
    weight = _weight(5, columns, seed)
    scale = _scale(weight, 4 if groups else None)
    hessian = _hessian(_inputs(2 * columns, columns, seed))
    diagonal = hessian.diagonal().numpy()
    sequence = np.arange(columns) if gptq.order == "given" else np.argsort(-diagonal, kind="stable")
    expected, margin = column_by_column(
        weight.numpy(), scale.numpy(), hessian.numpy(), gptq.damping, sequence, GRID.qmax
    )
    ours = gptq.round(weight, scale, GRID, hessian)
    nearest = Nearest().round(weight, scale, GRID, None)
    reference = torch.from_numpy(expected).to(torch.int8)
    errors = [_error(weight, codes, scale, hessian) for codes in (reference, nearest)]
    for row in range(len(ours)):
        different = np.flatnonzero((ours[row] != reference[row]).numpy()[sequence])
        # After a tie all codes may differ; and a row keeps its nearest codes where they are better.
        tie = len(different) > 0 and margin[row, sequence[different[0]]] < 1e-5
        kept = torch.equal(ours[row], nearest[row]) and bool(errors[1][row] <= errors[0][row])
        assert len(different) == 0 or tie or kept


@QUICK
@given(**PROBLEMS, sweeps=st.integers(0, 2), damping=st.sampled_from([1e-4, 0.01, 0.3]))
def test_never_worse_than_nearest(
    columns: int, tokens: int, dead: int, seed: int, sweeps: int, damping: float
) -> None:
    weight = _weight(6, columns, seed)
    scale, inputs = 0.7 * _scale(weight), _inputs(tokens, columns, seed, dead)
    gptq = Gptq(sweeps=sweeps, damping=damping)
    codes = gptq.round(weight, scale, GRID, _hessian(inputs))
    assert codes.shape == weight.shape
    assert codes.abs().max() <= GRID.qmax
    nearest = Nearest().round(weight, scale, GRID, None)
    # From the outputs themselves, which no Hessian stands between.
    ours, theirs = (
        output_error(weight.numpy(), c.numpy(), scale.numpy(), inputs.numpy())
        for c in (codes, nearest)
    )
    assert np.all(ours <= theirs * (1.0 + 1e-6) + 1e-9)
    assert torch.equal(codes[:, :dead], nearest[:, :dead])


@QUICK
@given(**PROBLEMS)
def test_sweeps_never_increase_the_error(columns: int, tokens: int, dead: int, seed: int) -> None:
    weight, hessian = _weight(6, columns, seed), _hessian(_inputs(tokens, columns, seed, dead))
    scale = _scale(weight)
    errors = [
        _error(weight, Gptq(sweeps=n).round(weight, scale, GRID, hessian), scale, hessian)
        for n in range(4)
    ]
    # A column's value is rounded in float32, so a tie may go the wrong way by so much.
    tie = 1e-6 * (scale.double().square() * hessian.diagonal()).sum(1)
    for before, after in itertools.pairwise(errors):
        assert bool((after <= before + tie).all())


@QUICK
@given(**PROBLEMS)
def test_the_block_does_not_change_the_codes(
    columns: int, tokens: int, dead: int, seed: int
) -> None:
    weight, hessian = _weight(6, columns, seed), _hessian(_inputs(tokens, columns, seed, dead))
    codes = [
        Gptq(block=block).round(weight, _scale(weight), GRID, hessian) for block in (1, 5, 128)
    ]
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


@QUICK
@given(st.integers(1, 30), st.integers(0, 999))
def test_weights_on_the_grid_stay(columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (4, columns), generator=generator, dtype=torch.int8)
    scale = torch.rand(4, 1, generator=generator) + 0.01
    weight = dequantize(codes, scale, torch.tensor(0))
    hessian = _hessian(_inputs(10, columns, seed))
    assert torch.equal(Gptq().round(weight, scale, GRID, hessian), codes)


@QUICK
@given(st.integers(1, 30), st.integers(0, 999))
def test_independent_inputs_leave_the_nearest_codes(columns: int, seed: int) -> None:
    weight = _weight(4, columns, seed)
    variances = torch.rand(columns, generator=torch.Generator().manual_seed(seed))
    codes = Gptq().round(weight, _scale(weight), GRID, torch.diag(variances))
    assert torch.equal(codes, Nearest().round(weight, _scale(weight), GRID, None))


def test_inputs_that_are_always_zero_leave_the_nearest_codes() -> None:
    weight = _weight(4, 6, 0)
    codes = Gptq().round(weight, _scale(weight), GRID, torch.zeros(6, 6))
    assert torch.equal(codes, Nearest().round(weight, _scale(weight), GRID, None))


@QUICK
@given(st.integers(0, 999))
def test_scales_of_groups_belong_to_their_columns(seed: int) -> None:
    weight, hessian = _weight(6, 24, seed), _hessian(_inputs(60, 24, seed))
    scale = _scale(weight, group=4)
    codes = Gptq().round(weight, scale, GRID, hessian)
    # Columns in another order, each with its scale, get the same codes in that order.
    other = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    moved = Gptq().round(weight[:, other], scale[:, other], GRID, hessian[other][:, other])
    assert torch.equal(moved, codes[:, other])
    same = _scale(weight)
    wide = Gptq().round(weight, same.expand_as(weight), GRID, hessian)
    assert torch.equal(wide, Gptq().round(weight, same, GRID, hessian))


def test_it_halves_the_error_of_correlated_inputs() -> None:
    weight, hessian = _weight(32, 64, 0), _hessian(_inputs(500, 64, 0))
    scale = _scale(weight)
    nearest = Nearest().round(weight, scale, GRID, None)
    swept, plain = (
        _error(weight, Gptq(sweeps=n).round(weight, scale, GRID, hessian), scale, hessian).sum()
        for n in (2, 0)
    )
    assert plain < 0.5 * _error(weight, nearest, scale, hessian).sum()
    assert swept < plain


def test_the_result_is_what_is_stored_and_exported() -> None:
    weight = _weight(8, 12, 0)
    with torch.inference_mode():
        codes = Gptq().round(weight, _scale(weight), GRID, _hessian(_inputs(40, 12, 0)).float())
    assert codes.is_contiguous()
    assert codes.dtype == torch.int8


def test_a_hessian_slightly_off_is_damped_further() -> None:
    # Its least eigenvalue is -0.05: 0.01 of the mean diagonal does not mend it, 0.1 does.
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    assert Gptq().round(torch.tensor([[0.4, 0.4]]), ONE, GRID, hessian).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "hessian", [torch.full((2, 2), float("nan")), torch.tensor([[1.0, 9.0], [9.0, 1.0]])]
)
def test_a_hessian_that_is_none_is_refused(hessian: Tensor) -> None:
    with pytest.raises(RecipeError, match="cannot be factored"):
        Gptq().round(torch.tensor([[0.4, 0.4]]), ONE, GRID, hessian)


def test_mistakes_of_the_caller() -> None:
    for hessian in (None, torch.eye(3)):
        with pytest.raises(ValueError, match="of 2 inputs"):
            Gptq().round(torch.ones(1, 2), ONE, GRID, hessian)
    for values in ({"damping": 0.0}, {"sweeps": -1}, {"block": 0}, {"order": "random"}):
        with pytest.raises(ValidationError):
            Gptq(**values)
    assert (Gptq.needs_hessian, Nearest.needs_hessian) == (True, False)
