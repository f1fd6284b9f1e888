import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit.calibrators import (
    Calibrator,
    Entropy,
    MinMax,
    MovingAverage,
    Mse,
    Observed,
    Percentile,
    per_token_range,
)
from quantkit.calibrators.entropy import divergence
from quantkit.calibrators.histogram import Histogram, by_range
from quantkit.calibrators.ladder import narrowed, search
from quantkit.calibrators.mse import squared_error
from quantkit.numerics import (
    Grid,
    fake_quantize,
    scale_and_zero_point,
)
from quantkit.recipe import parse_recipe
from tests.observing import (
    ALL,
    GRIDS,
    QUICK,
    S8,
    TEXTS,
    U4,
    U8,
    filled,
    observe,
    range_of,
    samples,
)

# --- each calibrator by hand, and its identities


def test_minmax_is_the_range_itself() -> None:
    observed = Observed(torch.tensor([-1.5, 0.0]), torch.tensor([2.0, 7.0]))
    low, high = MinMax().range(observed, U8)
    assert (low.tolist(), high.tolist()) == ([-1.5, 0.0], [2.0, 7.0])


def test_percentile_by_hand() -> None:
    values = torch.arange(10_001, dtype=torch.float32)[:, None]
    low, high = range_of([values], Percentile(99.0))
    assert float(low) == pytest.approx(50.0, abs=3.0)
    assert float(high) == pytest.approx(9950.0, abs=3.0)


@settings(deadline=None)
@given(TEXTS, st.sampled_from([1, 2, 4]))
def test_percentile_100_is_minmax(texts: Tensor, groups: int) -> None:
    low, high = range_of(list(texts), Percentile(100.0), groups=groups)
    rows = by_range(texts, groups)
    assert torch.equal(low, rows.amin(1))
    assert torch.equal(high, rows.amax(1))


def test_an_end_that_is_tiny_beside_the_other_is_not_lost() -> None:
    values = torch.tensor([[-100.0], [1e-20]])
    for calibrator in (MinMax(), Percentile(100.0)):
        low, high = range_of([values], calibrator)
        assert (float(low), float(high)) == (-100.0, float(values[1]))
    assert float(filled(values).edges[0, -1]) == float(values[1])


def test_moving_average_by_hand() -> None:
    # Three batches; the highs are 4, 8, 0: 0.5 * 4 + 0.5 * 8 = 6, then 0.5 * 6 + 0.5 * 0 = 3.
    texts = [
        torch.tensor([[-1.0], [4.0]]),
        torch.tensor([[-3.0], [8.0]]),
        torch.tensor([[-2.0], [0.0]]),
    ]
    observed = observe(texts, MovingAverage(0.5), batch=1)
    low, high = MovingAverage(0.5).range(observed, U8)
    assert (float(low), float(high)) == (-2.0, 3.0)
    assert (float(observed.low), float(observed.high)) == (-3.0, 8.0)


@settings(deadline=None)
@given(TEXTS, st.sampled_from([1, 2, 4]))
def test_momentum_0_is_the_last_batch(texts: Tensor, groups: int) -> None:
    observed = observe(list(texts), MovingAverage(0.0), groups, batch=1)
    low, high = MovingAverage(0.0).range(observed, U8)
    rows = by_range(texts[-1], groups)
    assert torch.equal(low, rows.amin(1))
    assert torch.equal(high, rows.amax(1))


@settings(deadline=None)
@given(TEXTS, st.floats(0.0, 0.99))
def test_one_batch_is_its_own_average(texts: Tensor, momentum: float) -> None:
    observed = observe(list(texts), MovingAverage(momentum), batch=8)
    low, high = MovingAverage(momentum).range(observed, U8)
    assert (float(low), float(high)) == (float(texts.min()), float(texts.max()))


@pytest.mark.parametrize("grid", [U8, S8])
def test_mse_of_uniform_values_is_minmax(grid: Grid) -> None:
    values = torch.linspace(-1.0, 2.0, 30_001)[:, None]
    low, high = range_of([values], Mse(), grid)
    # One side of a symmetric grid is not needed up to its end: only the wider end counts.
    assert float(high) == 2.0
    assert float(low) == -1.0


def test_squared_error_by_hand() -> None:
    # The docstring's number: no clipping leaves step**2 / 12.
    values = torch.linspace(0.0, 1.0, 100_001)
    ends = torch.tensor([0.0]), torch.tensor([1.0])
    error = squared_error(filled(values), U8, *ends)
    assert float(error) == pytest.approx(1 / 255**2 / 12, rel=1e-3)
    # Codes 0..15 for 0..0.5: the upper half is clipped by t in 0..0.5, of mean square 1/12.
    half = squared_error(filled(values), U4, ends[0], torch.tensor([0.5]))
    assert float(half) == pytest.approx(0.5 * (0.5 / 15) ** 2 / 12 + 0.5 / 12, rel=1e-3)


def test_squared_error_of_a_constant_is_that_of_its_value() -> None:
    values = torch.full((7,), 0.3)
    error = squared_error(filled(values), U4, torch.tensor([-1.0]), torch.tensor([2.0]))
    assert float(error) == pytest.approx((0.4 - 0.3) ** 2)  # step 0.2, so 0.3 rounds to 0.4 or 0.2


def test_divergence_by_hand() -> None:
    # The docstring's numbers. Bins of width 1 from 0 to 6; the range 0..6 on codes 0..3 has
    # step 2, and the centres 0.5 .. 5.5 the codes 0, 1, 1, 2, 2, 3.
    grid = Grid(0, 3, torch.uint8)
    histogram = Histogram(torch.tensor([0.0]), torch.tensor([6.0]), bins=6)
    histogram.counts[0] = torch.tensor([0.0, 1.0, 3.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    whole = torch.tensor([0.0]), torch.tensor([6.0])
    expected = 1 / 8 * np.log(1 / 2) + 3 / 8 * np.log(3 / 2)
    assert float(divergence(histogram, grid, *whole)) == pytest.approx(expected)
    assert expected == pytest.approx(0.0654, abs=1e-4)


def test_divergence_counts_what_is_clipped_at_the_outermost_bin() -> None:
    # As many codes as bins, so nothing is merged: 0..3 keeps the counts 5, 1, 2 of 10.
    grid = Grid(0, 3, torch.uint8)
    histogram = Histogram(torch.tensor([0.0]), torch.tensor([4.0]), bins=4)
    histogram.counts[0] = torch.tensor([5.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    narrow = torch.tensor([0.0]), torch.tensor([3.0])
    p, q = np.array([5, 1, 4]) / 10, np.array([5, 1, 2]) / 8
    # Step 1 and centres 0.5, 1.5, 2.5 have the codes 0, 2, 2: the last two share 3 counts.
    q[1:] = 1.5 / 8
    assert float(divergence(histogram, grid, *narrow)) == pytest.approx(
        float((p * np.log(p / q)).sum())
    )
    finer = torch.tensor([0.0]), torch.tensor([2.9])
    assert float(divergence(histogram, grid, *finer)) == float("inf")


def test_entropy_of_a_histogram_as_fine_as_the_grid_is_minmax() -> None:
    values = torch.linspace(-1.0, 2.0, 30_001)
    histogram = filled(values)
    observed = Observed(histogram.low, histogram.high, histogram=histogram)
    low, high = Entropy().range(observed, U8)
    assert (float(low), float(high)) == (-1.0, 2.0)


def test_massive_activations_survive_mse_and_not_entropy() -> None:
    # One value in 1000 at 60 standard deviations, as behind a LayerNorm of BERT.
    values = samples("massive", 40_000)[:, None]
    whole = float(values.min())
    assert float(range_of([values], Mse())[0]) < 0.9 * whole
    assert float(range_of([values], Entropy())[0]) > 0.3 * whole
    assert float(range_of([values], Percentile(99.0))[0]) > 0.1 * whole


def test_per_token_range_by_hand() -> None:
    x = torch.tensor([[[-1.0, 0.0, 3.0], [5.0, 6.0, 7.0]]])
    low, high = per_token_range(x)
    assert low.tolist() == [[[-1.0], [5.0]]]
    assert high.tolist() == [[[3.0], [7.0]]]


def test_a_massive_token_coarsens_its_own_step_only() -> None:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    x[2, 5] = 500.0
    scale, zero_point = scale_and_zero_point(*per_token_range(x), U8)
    error = (fake_quantize(x, scale, zero_point, U8) - x).abs().amax(1)
    assert bool((error <= scale.squeeze(1) * 1.001).all())
    assert float(scale[2]) > 50.0 * float(scale[[0, 1, 3, 4, 5]].max())


# --- properties of all of them


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.sampled_from(QUICK), GRIDS, st.sampled_from([1, 2, 4]), st.floats(-2.0, 2.0))
def test_ranges_lie_inside_the_extremes_and_their_grid_has_zero(
    texts: Tensor, calibrator: Calibrator, grid: Grid, groups: int, shift: float
) -> None:
    texts = texts + shift
    low, high = range_of(list(texts), calibrator, grid, groups)
    rows = by_range(texts, groups)
    assert low.shape == high.shape == (groups,)
    assert low.dtype == high.dtype == torch.float32
    assert bool(
        (rows.amin(1) <= low).all() and (low <= high).all() and (high <= rows.amax(1)).all()
    )
    scale, zero_point = scale_and_zero_point(low, high, grid)
    assert bool(torch.isfinite(scale).all())
    assert not bool(fake_quantize(torch.zeros(groups), scale, zero_point, grid).any())


@settings(deadline=None, max_examples=25)
@given(TEXTS, st.sampled_from(QUICK), GRIDS)
def test_many_ranges_at_once_are_those_one_at_a_time(
    texts: Tensor, calibrator: Calibrator, grid: Grid
) -> None:
    together = range_of(list(texts), calibrator, grid, groups=4)
    for channel in range(4):
        alone = range_of([text[:, channel : channel + 1] for text in texts], calibrator, grid)
        for all_ends, end in zip(together, alone, strict=True):
            assert float(all_ends[channel]) == float(end)


@settings(deadline=None, max_examples=25)
@given(TEXTS, GRIDS, st.sampled_from([1, 2, 4]))
def test_mse_is_never_worse_than_minmax(texts: Tensor, grid: Grid, groups: int) -> None:
    observed = observe(list(texts), Mse(), groups)
    found = squared_error(observed.counted(), grid, *Mse(candidates=10).range(observed, grid))
    whole = squared_error(observed.counted(), grid, observed.low, observed.high)
    assert bool((found <= whole).all())


@settings(deadline=None, max_examples=25)
@given(TEXTS, GRIDS, st.sampled_from([1, 2, 4]))
def test_entropy_is_never_worse_than_minmax(texts: Tensor, grid: Grid, groups: int) -> None:
    observed = observe(list(texts), Entropy(), groups)
    found = divergence(observed.counted(), grid, *Entropy(candidates=10).range(observed, grid))
    assert bool((found <= divergence(observed.counted(), grid, observed.low, observed.high)).all())


@pytest.mark.parametrize("calibrator", ALL)
@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("grid", [U8, S8])
def test_a_constant_tensor_keeps_its_value(
    calibrator: Calibrator, value: float, grid: Grid
) -> None:
    low, high = range_of([torch.full((5, 4), value)] * 3, calibrator, grid)
    assert (float(low), float(high)) == (value, value)


def test_a_channel_has_a_range_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(500, 3, generator=generator) * torch.tensor([1.0, 100.0, 1e-3])]
    for calibrator in ALL:
        low, high = range_of(texts, calibrator, groups=3)
        widths = (high - low).tolist()
        assert widths[1] > 20.0 * widths[0] > 1000.0 * widths[2]


@pytest.mark.parametrize("calibrator", ALL[1:])
def test_a_calibrator_without_its_statistics_says_so(calibrator: Calibrator) -> None:
    with pytest.raises(ValueError, match="this calibrator needs"):
        calibrator.range(Observed(torch.zeros(1), torch.ones(1)), U8)


def test_narrowed_by_hand() -> None:
    ends = torch.tensor([-4.0]), torch.tensor([8.0])
    shares = torch.tensor([0.5]), torch.tensor([0.25])
    assert [float(end) for end in narrowed(*ends, *shares, U8)] == [-2.0, 2.0]
    assert [float(end) for end in narrowed(*ends, *shares, S8)] == [-4.0, 2.0]
    # All values on one side of 0: the near end stays, and the far one does not pass it.
    positive = torch.tensor([2.0]), torch.tensor([5.0])
    tenth = torch.tensor([0.1]), torch.tensor([0.1])
    assert [float(end) for end in narrowed(*positive, *tenth, U8)] == [2.0, 2.0]
    negative = torch.tensor([-5.0]), torch.tensor([-2.0])
    assert [float(end) for end in narrowed(*negative, *tenth, U8)] == [-2.0, -2.0]


@pytest.mark.parametrize("grid", [U8, S8])
def test_of_ranges_that_cost_the_same_the_search_keeps_the_whole(grid: Grid) -> None:
    ends = torch.tensor([-4.0, -1.0]), torch.tensor([8.0, 1.0])
    low, high = search(*ends, grid, lambda low, high: torch.zeros(2), steps=20)
    assert torch.equal(low, ends[0])
    assert torch.equal(high, ends[1])


@pytest.mark.parametrize("calibrator", [*ALL, MovingAverage(0.5), Mse(candidates=50)])
def test_recipes_name_calibrators(calibrator: Calibrator) -> None:
    values = {key: value for key, value in vars(calibrator).items() if not key.startswith("_")}
    slots = {"name": "x", "task": "none", "model": "none", "activations": {"calibrator": values}}
    assert parse_recipe(slots, "test").activations.calibrator == calibrator
