import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.algorithms.smoothing_search import Observed, Smoothed, channel_maxima, search
from quantkit.algorithms.smoothquant import SmoothQuant, smoothing_vector
from quantkit.numerics import (
    asymmetric_grid,
    fake_quantize,
    scale_and_zero_point,
    symmetric_grid,
)


def test_by_hand() -> None:
    maxima = torch.tensor([16.0]), torch.tensor([1.0])
    assert float(smoothing_vector(*maxima, 0.5)) == 4.0
    assert float(smoothing_vector(*maxima, 0.75)) == 8.0


def test_dead_channels_stay() -> None:
    vector = smoothing_vector(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), 0.75)
    assert vector.tolist() == [1.0, 1.0]


@given(st.floats(0.1, 0.9), st.integers(0, 1000))
def test_smoothing_leaves_the_product_as_it_is(alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    w = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    s = smoothing_vector(x.abs().amax(0), w.abs().amax(0), alpha)
    torch.testing.assert_close((x / s) @ (w * s).T, x @ w.T, rtol=1e-9, atol=1e-9)


def _coarsened(weight: torch.Tensor) -> torch.Tensor:
    bound = weight.abs().amax(1, keepdim=True)
    grid = symmetric_grid(8)
    return fake_quantize(weight, *scale_and_zero_point(-bound, bound, grid), grid)


def _chosen(calls: list[Observed], weight: torch.Tensor, slot: SmoothQuant) -> Smoothed:
    vectors = slot.vectors(channel_maxima(calls), weight.abs().amax(0))
    return search(calls, weight, vectors, asymmetric_grid(8), _coarsened)


def _search(rows: torch.Tensor, weight: torch.Tensor, alpha: float) -> float:
    calls = [Observed(rows, rows.amin(0), rows.amax(0))]
    return _chosen(calls, weight, SmoothQuant(alpha=alpha)).error


def _error_without_smoothing(rows: torch.Tensor, weight: torch.Tensor) -> float:
    bound = weight.abs().amax(1, keepdim=True)
    grids = asymmetric_grid(8), symmetric_grid(8)
    a = fake_quantize(rows, *scale_and_zero_point(rows.min(), rows.max(), grids[0]), grids[0])
    w = fake_quantize(weight, *scale_and_zero_point(-bound, bound, grids[1]), grids[1])
    exact = rows @ weight.T
    return float(((a @ w.T - exact).square().sum(1) / exact.square().sum(1)).mean())


def test_the_search_takes_the_best_candidate_and_beats_none_on_a_wide_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 32, generator=generator)
    rows[:, 5] *= 100.0
    weight = torch.randn(16, 32, generator=generator)
    alphas = SmoothQuant().alphas
    each = {alpha: _search(rows, weight, alpha) for alpha in alphas}
    calls = [Observed(rows, rows.amin(0), rows.amax(0))]
    chosen = _chosen(calls, weight, SmoothQuant())
    assert chosen.setting == min(each, key=each.__getitem__)
    assert chosen.error < 0.2 * _error_without_smoothing(rows, weight)


def test_calls_of_one_weight_share_a_vector_and_keep_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(100, 8, generator=generator)
    wide = 50.0 * torch.randn(100, 8, generator=generator)
    weight = torch.randn(6, 8, generator=generator)
    slot = SmoothQuant(alpha=0.7)
    calls = [Observed(rows, rows.amin(0), rows.amax(0)) for rows in (narrow, wide)]
    both = _chosen(calls, weight, slot)
    widest = torch.maximum(narrow.abs().amax(0), wide.abs().amax(0))
    assert torch.equal(both.vector, smoothing_vector(widest, weight.abs().amax(0), 0.7))
    # In the wide call's range the narrow call would have codes of about 0 only.
    each = [_chosen([call], weight, slot).error for call in calls]
    assert both.error < 2.0 * max(each)
    assert _chosen([calls[0]] * 3, weight, slot).error == pytest.approx(each[0])


def test_a_fixed_alpha_is_the_only_candidate() -> None:
    assert SmoothQuant(alpha=0.75).alphas == (0.75,)
