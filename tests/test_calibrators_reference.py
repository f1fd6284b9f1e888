"""Errors, divergences and chosen ranges beside those of plain NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.calibrators import (
    Entropy,
    Mse,
    Observed,
)
from quantkit.calibrators.entropy import divergence
from quantkit.calibrators.histogram import Histogram
from quantkit.calibrators.ladder import narrowed
from quantkit.calibrators.mse import squared_error
from quantkit.numerics import (
    Grid,
)
from tests.observing import (
    S4,
    S8,
    SAMPLES,
    U4,
    U8,
    filled,
    range_of,
    raw_error,
    samples,
)
from tests.reference import calibrators as reference


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("grid", [U8, S8, U4, S4])
def test_mse_is_as_good_as_all_pairs_on_the_values_themselves(name: str, grid: Grid) -> None:
    x = samples(name)
    low, high = range_of([x[:, None]], Mse(candidates=20), grid)
    best, _ = reference.best_of_pairs(x.numpy(), grid.qmin, grid.qmax, 20)
    assert raw_error(x, low, high, grid) <= 1.02 * best


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("bins", "tolerance"), [(512, 0.12), (4096, 0.02)])
def test_squared_error_of_a_histogram_is_that_of_its_values(
    name: str, bins: int, tolerance: float
) -> None:
    x = samples(name, 20_000)
    histogram = filled(x, bins)
    for share in (1.0, 0.8, 0.5, 0.3):
        for grid in (U8, S8, U4, S4):
            ends = narrowed(
                histogram.low, histogram.high, torch.tensor([share]), torch.tensor([1.0]), grid
            )
            error = float(squared_error(histogram, grid, *ends))
            assert error == pytest.approx(raw_error(x, *ends, grid), rel=tolerance)


@settings(deadline=None)
@given(
    hnp.arrays(np.int64, 60, elements=st.integers(0, 50)),
    st.floats(-8.0, 3.0, width=32),
    st.floats(0.1, 1.0),
    st.floats(0.1, 1.0),
    st.sampled_from([S4, U4, Grid(0, 7, torch.uint8)]),
)
def test_divergence_equals_the_reference(
    counts: np.ndarray, start: float, low_share: float, high_share: float, grid: Grid
) -> None:
    histogram = Histogram(torch.tensor([start]), torch.tensor([start + 6.0]), bins=60)
    histogram.counts[0] = torch.from_numpy(counts).double()
    shares = torch.tensor([low_share]), torch.tensor([high_share])
    ends = narrowed(histogram.low, histogram.high, *shares, grid)
    expected = reference.divergence(
        counts,
        histogram.centres[0].numpy(),
        float(ends[0]),
        float(ends[1]),
        grid.qmin,
        grid.qmax,
    )
    assert float(divergence(histogram, grid, *ends)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLES)
def test_entropy_on_a_symmetric_grid_is_the_references_best(name: str) -> None:
    x = samples(name)
    histogram = filled(x, 256)
    observed = Observed(histogram.low, histogram.high, histogram=histogram)
    low, high = Entropy(candidates=50).range(observed, S4)
    counts, centres = histogram.counts[0].numpy(), histogram.centres[0].numpy()
    costs: dict[tuple[float, float], float] = {}
    for step in range(50, 0, -1):
        share = torch.tensor([step / 50])
        ends = narrowed(histogram.low, histogram.high, share, share, S4)
        pair = float(ends[0]), float(ends[1])
        cost = reference.divergence(counts, centres, *pair, S4.qmin, S4.qmax)
        costs.setdefault(pair, cost)
    assert (float(low), float(high)) == min(costs, key=costs.__getitem__)


@pytest.mark.parametrize("name", SAMPLES)
def test_entropy_is_nearly_as_good_as_all_pairs(name: str) -> None:
    x = samples(name)
    histogram = filled(x, 256)
    observed = Observed(histogram.low, histogram.high, histogram=histogram)
    found = divergence(histogram, U4, *Entropy(candidates=20).range(observed, U4))
    shares = [torch.tensor([step / 20]) for step in range(20, 0, -1)]
    best = min(
        float(divergence(histogram, U4, *narrowed(histogram.low, histogram.high, a, b, U4)))
        for a in shares
        for b in shares
    )
    assert float(found) <= 1.02 * best + 1e-9


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(2, 300), elements=st.floats(-50, 50, width=32)),
    st.floats(0.0, 1.0),
)
def test_quantiles_are_numpys_to_a_bin(values: np.ndarray, share: float) -> None:
    histogram = filled(torch.from_numpy(values))
    quantile, slack = float(histogram.quantile(share)), float(histogram.width) * 1.01 + 1e-6
    assert (values <= quantile + slack).mean() >= share - 1e-6
    assert (values >= quantile - slack).mean() >= 1 - share - 1e-6
    nearest = np.quantile(values, share, method="inverted_cdf")
    assert quantile <= nearest + slack
