import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.calibrators import MinMax, Percentile
from quantkit.calibrators.histogram import Histogram


def _filled(texts: list[torch.Tensor]) -> Histogram:
    everything = torch.cat(texts)
    histogram = Histogram(float(everything.min()), float(everything.max()))
    for text in texts:
        histogram.update(text)
    return histogram


def test_minmax_is_the_range_itself() -> None:
    assert MinMax().range(-1.5, 2.0, None) == (-1.5, 2.0)


def test_percentile_by_hand() -> None:
    values = torch.arange(10_001, dtype=torch.float32)
    low, high = Percentile(99.0).range(0.0, 10_000.0, _filled([values]))
    assert low == pytest.approx(50.0, abs=3.0)
    assert high == pytest.approx(9950.0, abs=3.0)


def test_percentile_100_is_minmax() -> None:
    histogram = _filled([torch.tensor([-3.0, 0.5, 4.0])])
    assert Percentile(100.0).range(-3.0, 4.0, histogram) == (-3.0, 4.0)


@given(
    hnp.arrays(np.float32, st.integers(2, 300), elements=st.floats(-50, 50, width=32)),
    st.floats(0.0, 1.0),
)
def test_quantiles_are_numpys_to_a_bin(values: np.ndarray, share: float) -> None:
    histogram = _filled([torch.from_numpy(values)])
    expected = np.quantile(values, [share], method="inverted_cdf")[0]
    below = (values <= histogram.quantile(share) + histogram.width * 1.01 + 1e-6).mean()
    above = (values >= histogram.quantile(share) - histogram.width * 1.01 - 1e-6).mean()
    assert below >= share - 1e-6
    assert above >= 1 - share - 1e-6
    assert values.min() - 1e-3 <= expected <= values.max() + 1e-3


def test_clipped_texts_counts_texts_not_values() -> None:
    texts = [torch.full((10,), 0.5) for _ in range(9)] + [torch.tensor([0.0, 100.0, 100.0])]
    assert _filled(texts).clipped_texts(-1.0, 50.0) == pytest.approx(0.1)
    assert _filled(texts).clipped_texts(0.0, 100.0) == 0.0


def test_a_constant_tensor_has_its_value_as_every_quantile() -> None:
    histogram = _filled([torch.full((5,), 2.0)])
    assert histogram.quantile(0.5) == 2.0
