"""What tests of calibrators share: grids, samples, and an observed tensor in one call."""

import numpy as np
import torch
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
)
from quantkit.calibrators.histogram import Histogram
from quantkit.numerics import (
    Grid,
    asymmetric_grid,
    symmetric_grid,
)
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


def observe(
    texts: list[Tensor], calibrator: Calibrator, groups: int = 1, batch: int = 2
) -> Observed:
    first = Observer(groups)
    first.update(*texts)
    seen = first.observed()
    second = observer_for(calibrator, seen.low, seen.high)
    for at in range(0, len(texts), batch):
        second.update(*texts[at : at + batch])
    return second.observed()


def range_of(
    texts: list[Tensor], calibrator: Calibrator, grid: Grid = U8, groups: int = 1
) -> tuple[Tensor, Tensor]:
    return calibrator.range(observe(texts, calibrator, groups), grid)


def filled(values: Tensor, bins: int | None = None) -> Histogram:
    histogram = Histogram(values.min()[None], values.max()[None], bins)
    histogram.update(values)
    return histogram


def raw_error(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> float:
    return reference.squared_error(x.numpy(), float(low), float(high), grid.qmin, grid.qmax)


def samples(name: str, size: int = 4000) -> Tensor:
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
