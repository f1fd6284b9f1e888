import pytest
import torch
from torch import Tensor

from quantkit.calibrators import (
    MovingAverage,
    Observer,
    Percentile,
)
from quantkit.calibrators.histogram import Histogram, by_range, default_bins
from tests.observing import (
    U8,
    observe,
)


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
    histogram = observe(texts, Percentile()).counted()
    assert histogram.clipped_texts(torch.tensor([-1.0]), torch.tensor([50.0])) == pytest.approx(0.1)
    assert histogram.clipped_texts(torch.tensor([0.0]), torch.tensor([100.0])) == 0.0
    one, two = (torch.zeros(1), torch.ones(1)), (torch.zeros(2), torch.ones(2))
    assert Histogram(*one).clipped_texts(*one) == 0.0
    with pytest.raises(ValueError, match="per tensor only"):
        Histogram(*two).clipped_texts(*two)


def test_a_text_is_clipped_when_the_whole_bin_of_its_extreme_is() -> None:
    histogram = Histogram(torch.tensor([0.0]), torch.tensor([4.0]), bins=4)
    for value in (0.5, 1.5, 2.5, 3.5):
        histogram.update(torch.tensor([value]))
    assert histogram.clipped_texts(torch.tensor([1.2]), torch.tensor([4.0])) == 0.25
    assert histogram.clipped_texts(torch.tensor([0.0]), torch.tensor([2.2])) == 0.25
    assert histogram.clipped_texts(torch.tensor([1.2]), torch.tensor([2.2])) == 0.5


def test_a_moving_average_counts_clipped_texts_too() -> None:
    texts = [torch.full((4, 2), float(n)) for n in range(10)]
    observed = observe(texts, MovingAverage(), batch=1)
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
