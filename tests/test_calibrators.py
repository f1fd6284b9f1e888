import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from quantkit.calibrators import (
    Calibrator,
    Entropy,
    MinMax,
    MovingAverage,
    Mse,
    Observed,
    Observer,
    Percentile,
    observer_for,
    per_token_range,
)
from quantkit.calibrators.entropy import divergence
from quantkit.calibrators.histogram import Histogram, by_range, default_bins
from quantkit.calibrators.ladder import narrowed
from quantkit.calibrators.mse import squared_error
from quantkit.numerics import (
    Grid,
    asymmetric_grid,
    fake_quantize,
    scale_and_zero_point,
    symmetric_grid,
)
from quantkit.recipe import parse_recipe
from tests.reference import calibrators as reference

U8, S8, U4, S4 = asymmetric_grid(8), symmetric_grid(8), asymmetric_grid(4), symmetric_grid(4)
GRIDS = st.sampled_from([U8, S8, U4, S4])
ALL: list[Calibrator] = [MinMax(), MovingAverage(), Percentile(99.0), Mse(), Entropy()]
QUICK: list[Calibrator] = [*ALL[:3], Mse(candidates=20), Entropy(candidates=20)]
# Up to 8 texts of 3 rows and 4 channels: scales of channels differ by powers of ten.
TEXTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.just(3), st.just(4)),
    elements=st.floats(-1, 1, width=32),
).map(lambda texts: torch.from_numpy(texts) * torch.tensor([0.1, 1.0, 10.0, 100.0]))


def _observe(
    texts: list[Tensor], calibrator: Calibrator, groups: int = 1, batch: int = 2
) -> Observed:
    first = Observer(groups)
    first.update(*texts)
    seen = first.observed()
    second = observer_for(calibrator, seen.low, seen.high)
    for at in range(0, len(texts), batch):
        second.update(*texts[at : at + batch])
    return second.observed()


def _range(
    texts: list[Tensor], calibrator: Calibrator, grid: Grid = U8, groups: int = 1
) -> tuple[Tensor, Tensor]:
    return calibrator.range(_observe(texts, calibrator, groups), grid)


def _filled(values: Tensor, bins: int | None = None) -> Histogram:
    histogram = Histogram(values.min()[None], values.max()[None], bins)
    histogram.update(values)
    return histogram


def _raw_error(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> float:
    return reference.squared_error(x.numpy(), float(low), float(high), grid.qmin, grid.qmax)


def _samples(name: str, size: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(size, generator=generator)
    if name == "normal":
        return normal
    if name == "gelu":
        return torch.nn.functional.gelu(1.5 * normal)
    if name == "positive":
        return normal.abs() + 0.5
    if name == "massive":  # a value of 60 standard deviations in 1000
        return torch.where(torch.arange(size) % 1000 == 0, -60.0 + normal, normal)
    return torch.rand(size, generator=generator) * 3.0 - 1.0


SAMPLES = ["normal", "gelu", "positive", "massive", "uniform"]


# --- each calibrator by hand, and its identities


def test_minmax_is_the_range_itself() -> None:
    observed = Observed(torch.tensor([-1.5, 0.0]), torch.tensor([2.0, 7.0]))
    low, high = MinMax().range(observed, U8)
    assert (low.tolist(), high.tolist()) == ([-1.5, 0.0], [2.0, 7.0])


def test_percentile_by_hand() -> None:
    values = torch.arange(10_001, dtype=torch.float32)[:, None]
    low, high = _range([values], Percentile(99.0))
    assert float(low) == pytest.approx(50.0, abs=3.0)
    assert float(high) == pytest.approx(9950.0, abs=3.0)


@settings(deadline=None)
@given(TEXTS, st.sampled_from([1, 2, 4]))
def test_percentile_100_is_minmax(texts: Tensor, groups: int) -> None:
    low, high = _range(list(texts), Percentile(100.0), groups=groups)
    rows = by_range(texts, groups)
    assert torch.equal(low, rows.amin(1))
    assert torch.equal(high, rows.amax(1))


def test_an_end_that_is_tiny_beside_the_other_is_not_lost() -> None:
    values = torch.tensor([[-100.0], [1e-20]])
    for calibrator in (MinMax(), Percentile(100.0)):
        low, high = _range([values], calibrator)
        assert (float(low), float(high)) == (-100.0, float(values[1]))
    assert float(_filled(values).edges[0, -1]) == float(values[1])


def test_moving_average_by_hand() -> None:
    # Three batches; the highs are 4, 8, 0: 0.5 * 4 + 0.5 * 8 = 6, then 0.5 * 6 + 0.5 * 0 = 3.
    texts = [
        torch.tensor([[-1.0], [4.0]]),
        torch.tensor([[-3.0], [8.0]]),
        torch.tensor([[-2.0], [0.0]]),
    ]
    observed = _observe(texts, MovingAverage(0.5), batch=1)
    low, high = MovingAverage(0.5).range(observed, U8)
    assert (float(low), float(high)) == (-2.0, 3.0)
    assert (float(observed.low), float(observed.high)) == (-3.0, 8.0)


@settings(deadline=None)
@given(TEXTS, st.sampled_from([1, 2, 4]))
def test_momentum_0_is_the_last_batch(texts: Tensor, groups: int) -> None:
    observed = _observe(list(texts), MovingAverage(0.0), groups, batch=1)
    low, high = MovingAverage(0.0).range(observed, U8)
    rows = by_range(texts[-1], groups)
    assert torch.equal(low, rows.amin(1))
    assert torch.equal(high, rows.amax(1))


@settings(deadline=None)
@given(TEXTS, st.floats(0.0, 0.99))
def test_one_batch_is_its_own_average(texts: Tensor, momentum: float) -> None:
    observed = _observe(list(texts), MovingAverage(momentum), batch=8)
    low, high = MovingAverage(momentum).range(observed, U8)
    assert (float(low), float(high)) == (float(texts.min()), float(texts.max()))


@pytest.mark.parametrize("grid", [U8, S8])
def test_mse_of_uniform_values_is_minmax(grid: Grid) -> None:
    values = torch.linspace(-1.0, 2.0, 30_001)[:, None]
    low, high = _range([values], Mse(), grid)
    # One side of a symmetric grid is not needed up to its end: only the wider end counts.
    assert float(high) == 2.0
    assert float(low) == -1.0


def test_squared_error_by_hand() -> None:
    # The docstring's number: no clipping leaves step**2 / 12.
    values = torch.linspace(0.0, 1.0, 100_001)
    ends = torch.tensor([0.0]), torch.tensor([1.0])
    error = squared_error(_filled(values), U8, *ends)
    assert float(error) == pytest.approx(1 / 255**2 / 12, rel=1e-3)
    # Codes 0..15 for 0..0.5: the upper half is clipped by t in 0..0.5, of mean square 1/12.
    half = squared_error(_filled(values), U4, ends[0], torch.tensor([0.5]))
    assert float(half) == pytest.approx(0.5 * (0.5 / 15) ** 2 / 12 + 0.5 / 12, rel=1e-3)


def test_squared_error_of_a_constant_is_that_of_its_value() -> None:
    values = torch.full((7,), 0.3)
    error = squared_error(_filled(values), U4, torch.tensor([-1.0]), torch.tensor([2.0]))
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
    histogram = _filled(values)
    observed = Observed(histogram.low, histogram.high, histogram=histogram)
    low, high = Entropy().range(observed, U8)
    assert (float(low), float(high)) == (-1.0, 2.0)


def test_massive_activations_survive_mse_and_not_entropy() -> None:
    # One value in 1000 at 60 standard deviations, as behind a LayerNorm of BERT.
    values = _samples("massive", 40_000)[:, None]
    whole = float(values.min())
    assert float(_range([values], Mse())[0]) < 0.9 * whole
    assert float(_range([values], Entropy())[0]) > 0.3 * whole
    assert float(_range([values], Percentile(99.0))[0]) > 0.1 * whole


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


# --- against the reference


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("grid", [U8, S8, U4, S4])
def test_mse_is_as_good_as_all_pairs_on_the_values_themselves(name: str, grid: Grid) -> None:
    x = _samples(name)
    low, high = _range([x[:, None]], Mse(candidates=20), grid)
    best, _ = reference.best_of_pairs(x.numpy(), grid.qmin, grid.qmax, 20)
    assert _raw_error(x, low, high, grid) <= 1.02 * best


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("bins", "tolerance"), [(512, 0.12), (4096, 0.02)])
def test_squared_error_of_a_histogram_is_that_of_its_values(
    name: str, bins: int, tolerance: float
) -> None:
    x = _samples(name, 20_000)
    histogram = _filled(x, bins)
    for share in (1.0, 0.8, 0.5, 0.3):
        for grid in (U8, S8, U4, S4):
            ends = narrowed(
                histogram.low, histogram.high, torch.tensor([share]), torch.tensor([1.0]), grid
            )
            error = float(squared_error(histogram, grid, *ends))
            assert error == pytest.approx(_raw_error(x, *ends, grid), rel=tolerance)


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
    x = _samples(name)
    histogram = _filled(x, 256)
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
    x = _samples(name)
    histogram = _filled(x, 256)
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
    histogram = _filled(torch.from_numpy(values))
    quantile, slack = float(histogram.quantile(share)), float(histogram.width) * 1.01 + 1e-6
    assert (values <= quantile + slack).mean() >= share - 1e-6
    assert (values >= quantile - slack).mean() >= 1 - share - 1e-6
    nearest = np.quantile(values, share, method="inverted_cdf")
    assert quantile <= nearest + slack


# --- properties of all of them


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.sampled_from(QUICK), GRIDS, st.sampled_from([1, 2, 4]), st.floats(-2.0, 2.0))
def test_ranges_lie_inside_the_extremes_and_their_grid_has_zero(
    texts: Tensor, calibrator: Calibrator, grid: Grid, groups: int, shift: float
) -> None:
    texts = texts + shift
    low, high = _range(list(texts), calibrator, grid, groups)
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
    together = _range(list(texts), calibrator, grid, groups=4)
    for channel in range(4):
        alone = _range([text[:, channel : channel + 1] for text in texts], calibrator, grid)
        for all_ends, end in zip(together, alone, strict=True):
            assert float(all_ends[channel]) == float(end)


@settings(deadline=None, max_examples=25)
@given(TEXTS, GRIDS, st.sampled_from([1, 2, 4]))
def test_mse_is_never_worse_than_minmax(texts: Tensor, grid: Grid, groups: int) -> None:
    observed = _observe(list(texts), Mse(), groups)
    found = squared_error(observed.counted(), grid, *Mse(candidates=10).range(observed, grid))
    whole = squared_error(observed.counted(), grid, observed.low, observed.high)
    assert bool((found <= whole).all())


@settings(deadline=None, max_examples=25)
@given(TEXTS, GRIDS, st.sampled_from([1, 2, 4]))
def test_entropy_is_never_worse_than_minmax(texts: Tensor, grid: Grid, groups: int) -> None:
    observed = _observe(list(texts), Entropy(), groups)
    found = divergence(observed.counted(), grid, *Entropy(candidates=10).range(observed, grid))
    assert bool((found <= divergence(observed.counted(), grid, observed.low, observed.high)).all())


@pytest.mark.parametrize("calibrator", ALL)
@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("grid", [U8, S8])
def test_a_constant_tensor_keeps_its_value(
    calibrator: Calibrator, value: float, grid: Grid
) -> None:
    low, high = _range([torch.full((5, 4), value)] * 3, calibrator, grid)
    assert (float(low), float(high)) == (value, value)


def test_a_channel_has_a_range_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(500, 3, generator=generator) * torch.tensor([1.0, 100.0, 1e-3])]
    for calibrator in ALL:
        low, high = _range(texts, calibrator, groups=3)
        widths = (high - low).tolist()
        assert widths[1] > 20.0 * widths[0] > 1000.0 * widths[2]


# --- histograms and observers


def test_by_range_by_hand() -> None:
    rows = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert by_range(rows, 1).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert by_range(rows, 2).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert by_range(rows, 4).tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]
    with pytest.raises(ValueError, match="4 channels cannot be divided into 3 groups"):
        by_range(rows, 3)


def test_bins_per_range_and_their_memory() -> None:
    assert [default_bins(n) for n in (1, 64, 65, 128, 256, 512, 3072)] == [
        4096,
        4096,
        2048,
        2048,
        1024,
        512,
        512,
    ]
    assert 3072 * default_bins(3072) * 8 == pytest.approx(12.6e6, rel=0.01)
    assert max(n * default_bins(n) * 8 for n in range(1, 513)) == 2 * 2**20


@pytest.mark.parametrize("groups", [1, 4])
def test_memory_does_not_depend_on_how_much_was_seen(groups: int) -> None:
    bounds = torch.full((groups,), -5.0), torch.full((groups,), 5.0)
    observer = Observer(groups, "histogram", bounds=bounds)
    histogram = observer.observed().counted()
    sizes = {id(histogram.counts): histogram.counts.numel()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        observer.update(torch.randn(9, 4, generator=generator))
    assert {id(histogram.counts): histogram.counts.numel()} == sizes
    assert float(histogram.counts.sum()) == 50 * 9 * 4
    assert observer.observed().histogram is histogram
    tensors = [value for value in vars(histogram).values() if isinstance(value, Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) <= groups * 4096 * 8 + 2 * 4096 * 8 + 64


def test_values_beyond_the_known_range_count_in_the_edge_bins() -> None:
    histogram = Histogram(torch.tensor([0.0]), torch.tensor([1.0]), bins=4)
    histogram.update(torch.tensor([-0.1, 0.1, 0.3, 1.0, 1.1]))
    assert histogram.counts.tolist() == [[2.0, 1.0, 0.0, 2.0]]


def test_clipped_texts_counts_texts_not_values() -> None:
    texts = [torch.full((10, 1), 0.5) for _ in range(9)] + [torch.tensor([[0.0], [100.0], [100.0]])]
    histogram = _observe(texts, Percentile()).counted()
    assert histogram.clipped_texts(torch.tensor([-1.0]), torch.tensor([50.0])) == pytest.approx(0.1)
    assert histogram.clipped_texts(torch.tensor([0.0]), torch.tensor([100.0])) == 0.0
    one, two = (torch.zeros(1), torch.ones(1)), (torch.zeros(2), torch.ones(2))
    assert Histogram(*one).clipped_texts(*one) == 0.0
    with pytest.raises(ValueError, match="per tensor only"):
        Histogram(*two).clipped_texts(*two)


def test_a_moving_average_counts_clipped_texts_too() -> None:
    texts = [torch.full((4, 2), float(n)) for n in range(10)]
    observed = _observe(texts, MovingAverage(), batch=1)
    low, high = MovingAverage().range(observed, U8)
    assert observed.counted().clipped_texts(low, high) >= 0.5


def test_an_observer_without_bounds_finds_the_extremes() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(5, 6, generator=generator) for _ in range(4)]
    observer = Observer(3)
    for text in texts:
        observer.update(text, text[:0])
    seen, rows = observer.observed(), by_range(torch.cat(texts), 3)
    assert torch.equal(seen.low, rows.amin(1))
    assert torch.equal(seen.high, rows.amax(1))
    assert seen.histogram is None


def test_what_an_observer_refuses() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="histogram needs bounds"):
        Observer(1, "histogram")
    with pytest.raises(ValueError, match="3 groups need as many bounds, not 1"):
        Observer(3, "moving", bounds=(one, one))
    with pytest.raises(ValueError, match="nothing was observed"):
        Observer(1).observed()
    with pytest.raises(ValueError, match="nothing was observed"):
        Observer(1, "moving", bounds=(one, one)).observed()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            Observer(1).update(torch.tensor([[1.0, bad]]))


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


@pytest.mark.parametrize("calibrator", [*ALL, MovingAverage(0.5), Mse(candidates=50)])
def test_recipes_name_calibrators(calibrator: Calibrator) -> None:
    values = {key: value for key, value in vars(calibrator).items() if not key.startswith("_")}
    slots = {"name": "x", "task": "none", "model": "none", "activations": {"calibrator": values}}
    assert parse_recipe(slots, "test").activations.calibrator == calibrator
