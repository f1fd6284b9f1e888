import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit.algorithms.weight_range import (
    absmax_scale,
    least_squares_scale,
    tensor_scale,
    two_level_scales,
)
from quantkit.numerics import fake_quantize, symmetric_grid

FOUR, EIGHT = symmetric_grid(4), symmetric_grid(8)


def _weight(seed: int, rows: int = 6, columns: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, columns // 16, 1, generator=generator) + 0.1
    weight = torch.randn(rows, columns // 16, 16, generator=generator) * spread
    return weight.view(rows, columns)


def _error(weight: Tensor, scale: Tensor, importance: Tensor | None = None) -> Tensor:
    off = fake_quantize(weight, scale, torch.zeros((), dtype=torch.int8), FOUR) - weight
    squares = off.square() if importance is None else off.square() * importance
    return squares.sum(1)


def _wide(scale: Tensor, multipliers: Tensor, group: int) -> Tensor:
    return (scale * multipliers).repeat_interleave(group, dim=1)


def test_absmax_by_hand() -> None:
    weight = torch.tensor([[0.5, -1.4], [0.0, 0.0]])
    assert absmax_scale(weight, FOUR)[:, 0].tolist() == pytest.approx([0.2, 1.0])
    assert tensor_scale(weight, FOUR)[:, 0].tolist() == pytest.approx([0.2, 0.2])


@given(st.integers(0, 200))
@settings(deadline=None)
def test_a_searched_range_is_never_worse_than_the_whole_one(seed: int) -> None:
    weight = _weight(seed)
    importance = torch.rand(64, generator=torch.Generator().manual_seed(seed)) + 0.01
    for weights in (None, importance):
        found = _error(weight, least_squares_scale(weight, FOUR, weights), weights)
        assert bool((found <= _error(weight, absmax_scale(weight, FOUR), weights) * 1.0001).all())


def test_clipping_gains_where_one_weight_is_wide() -> None:
    weight = torch.full((1, 64), 0.7)
    weight[0, ::2] = -0.7
    weight[0, 5] = 1.3
    assert float(least_squares_scale(weight, FOUR, None)) < float(absmax_scale(weight, FOUR))


def test_groups_that_two_levels_can_say_exactly_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-6, 7, (4, 4, 16), generator=generator).float()
    codes[..., 0] = 7.0  # every group uses its whole range
    multipliers = torch.tensor([16.0, 9.0, 3.0, 1.0])[None, :, None]
    weight = (0.01 * multipliers * codes).view(4, 64)
    scale, found = two_level_scales(weight, 16, FOUR, None)
    assert found.tolist() == [[16, 9, 3, 1]] * 4
    torch.testing.assert_close(scale, torch.full((4, 1), 0.01))
    assert float(_error(weight, _wide(scale, found, 16)).max()) < 1e-9


@given(st.integers(0, 200), st.sampled_from([16, 32]))
@settings(deadline=None)
def test_two_levels_are_within_the_grid_and_better_than_one(seed: int, group: int) -> None:
    weight = _weight(seed)
    scale, multipliers = two_level_scales(weight, group, FOUR, None)
    assert multipliers.dtype == torch.int8
    assert multipliers.shape == (6, 64 // group)
    assert int(multipliers.min()) >= 1
    assert int(multipliers.max()) <= 16
    two, one = (
        _error(weight, _wide(scale, multipliers, group)),
        _error(weight, least_squares_scale(weight, FOUR, None)),
    )
    assert float(two.sum()) < float(one.sum())


def test_two_levels_come_near_free_group_scales() -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    scale, multipliers = two_level_scales(weight, 32, FOUR, None)
    two = float(_error(weight, _wide(scale, multipliers, 32)).sum())
    grouped = weight.reshape(-1, 32)
    free = float(_error(grouped, least_squares_scale(grouped, FOUR, None)).sum())
    assert 10 * np.log10(two / free) < 0.25  # dB


def test_importance_moves_the_scale_to_the_columns_that_count() -> None:
    weight = torch.tensor([[0.31] * 15 + [1.0]])
    ordinary = torch.ones(16)
    ordinary[15] = 1e-6
    clipped = least_squares_scale(weight, FOUR, ordinary)
    assert float(_error(weight[:, :15], clipped)) < float(
        _error(weight[:, :15], least_squares_scale(weight, FOUR, None))
    )


def test_a_row_of_zeros_has_a_usable_scale() -> None:
    scale, multipliers = two_level_scales(torch.zeros(2, 32), 16, FOUR, None)
    assert bool(torch.isfinite(scale).all() and (scale > 0).all() and (multipliers >= 1).all())
