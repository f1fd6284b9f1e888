import pytest
import torch

from quantkit.algorithms.outlier_scaling import OutlierScaling
from quantkit.algorithms.smoothing_search import Observed, channel_maxima, search
from quantkit.numerics import asymmetric_grid


def test_by_hand() -> None:
    ((share, vector),) = OutlierScaling(share=0.25).vectors(
        torch.tensor([1.0, 2.0, 8.0]), torch.ones(3)
    )
    assert share == 0.25
    assert vector.tolist() == [1.0, 1.0, 4.0]


def test_the_whole_range_scales_nothing() -> None:
    ((_, vector),) = OutlierScaling(share=1.0).vectors(torch.tensor([3.0, 0.0, 5.0]), torch.ones(3))
    assert vector.tolist() == [1.0, 1.0, 1.0]


def test_an_input_of_zeros_is_left_alone() -> None:
    for _, vector in OutlierScaling().vectors(torch.zeros(3), torch.ones(3)):
        assert vector.tolist() == [1.0, 1.0, 1.0]


def test_the_search_narrows_a_massive_channel_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 32, generator=generator)
    rows[:, 5] *= 100.0
    weight = torch.randn(16, 32, generator=generator)
    calls = [Observed(rows, rows.amin(0), rows.amax(0))]
    maxima = channel_maxima(calls), weight.abs().amax(0)
    found = search(
        calls, weight, OutlierScaling().vectors(*maxima), asymmetric_grid(8), lambda w: w
    )
    whole = search(
        calls, weight, OutlierScaling(share=1.0).vectors(*maxima), asymmetric_grid(8), lambda w: w
    )
    assert found.error < 0.05 * whole.error
    others = torch.arange(32) != 5
    assert float(found.vector[5]) > 10.0
    assert float(found.vector[others].max()) == pytest.approx(1.0, abs=0.5)
