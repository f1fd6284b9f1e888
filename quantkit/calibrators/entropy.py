"""The range that loses least of the distribution's shape: TensorRT's calibration."""

from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.calibrators.histogram import Histogram
from quantkit.calibrators.ladder import search
from quantkit.calibrators.observer import Needs, Observed
from quantkit.config import STRICT
from quantkit.numerics import Grid, quantize, scale_and_zero_point

__all__ = ["Entropy", "divergence"]


@dataclass(frozen=True, config=STRICT)
class Entropy:
    """Least Kullback-Leibler divergence between the histogram and its quantized version.

    Migacz 2017 (8-bit Inference with TensorRT, GTC), for both ends of a range and any grid,
    with a search over `candidates` shares of each end; see `ladder`.

    How far a clipped value lies outside makes no difference to a divergence, so BERT's massive
    activations (|max| / sigma of 85 to 118 on one token of each text) are cut off, though the
    model needs them. On a small real Indonesian encoder the features' SQNR was 6.6 dB where
    minmax gives 16.5, and 16.1 dB where it gives 22.6 behind SmoothQuant with alpha 0.75.
    """

    candidates: Annotated[int, Field(ge=2, le=1000)] = 100
    name: Literal["entropy"] = "entropy"
    needs: ClassVar[Needs] = "histogram"

    def range(self, observed: Observed, grid: Grid) -> tuple[Tensor, Tensor]:
        """Ends [n] inside the observed extremes, by the divergence on `grid`.

        Raises:
            ValueError: no histogram was filled.
        """
        loss = partial(divergence, observed.counted(), grid)
        return search(observed.low, observed.high, grid, loss, self.candidates)


def divergence(histogram: Histogram, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    """KL(P || Q) when `grid` covers `low..high`: [n], in nats, float64.

    P is the histogram inside the range, with what lies outside added to the outermost occupied
    bins. Q is the histogram inside, where the bins that share a code share their counts evenly,
    empty ones left out. The counts 1 and 3 on one code and 4 on another, nothing
    clipped, give P = 1/8, 3/8, 4/8 and Q = 2/8, 2/8, 4/8: 0.0654 nats.

    As Migacz begins with as many bins as there are codes, a range whose step is finer than a
    bin has no divergence that could be told, and infinity is returned; so it is where no
    value lies inside.
    """
    counts, centres = histogram.counts, histogram.centres
    scale, zero_point = scale_and_zero_point(low[:, None], high[:, None], grid)
    below, above = centres < low.double()[:, None], centres > high.double()[:, None]
    inside = counts.masked_fill(below | above, 0.0)
    occupied = inside > 0.0
    codes = quantize(centres, scale, zero_point, grid).long() - grid.qmin
    expected = _shared_evenly(inside, codes, grid.qmax - grid.qmin + 1)
    actual = inside.scatter_add(1, _first(occupied), (counts * below).sum(1, keepdim=True))
    last = histogram.bins - 1 - _first(occupied.flip(1))
    actual.scatter_add_(1, last, (counts * above).sum(1, keepdim=True))
    p, q = actual / actual.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True)
    result = torch.where(occupied, p * (p / q).log(), 0.0).sum(1)
    told = occupied.any(1) & (scale.squeeze(1) >= histogram.width * (1.0 - 1e-6))
    return result.masked_fill(~told, torch.inf)


def _shared_evenly(counts: Tensor, codes: Tensor, levels: int) -> Tensor:
    """Each code's counts spread over its occupied bins [n, bins]; `codes` count from 0."""
    occupied = (counts > 0.0).double()
    together = counts.new_zeros(len(counts), levels)
    mass = together.scatter_add(1, codes, counts).gather(1, codes)
    places = together.scatter_add(1, codes, occupied).gather(1, codes)
    return occupied * mass / places.clamp(min=1.0)


def _first(occupied: Tensor) -> Tensor:
    """The first occupied bin of each row [n, 1]; 0 where there is none."""
    return occupied.to(torch.uint8).argmax(1, keepdim=True)
