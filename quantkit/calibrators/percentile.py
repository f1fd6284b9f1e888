"""A central share of the observed values; the tails are clipped."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.calibrators.observer import Needs, Observed
from quantkit.config import STRICT
from quantkit.numerics import Grid

__all__ = ["Percentile"]


@dataclass(frozen=True, config=STRICT)
class Percentile:
    """Cover the central `percentile` percent of the values, half of the rest cut at each end.

    On post-LayerNorm encoders this clips the massive activations: on a small real
    Indonesian encoder 99.99 left a feature SQNR of 4.0 dB where minmax keeps 17.7 dB.
    """

    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    name: Literal["percentile"] = "percentile"
    needs: ClassVar[Needs] = "histogram"

    def range(self, observed: Observed, grid: Grid) -> tuple[Tensor, Tensor]:
        """Interpolated quantiles [n], never outside the extremes; the same on every grid.

        Raises:
            ValueError: no histogram was filled.
        """
        del grid
        histogram, tail = observed.counted(), (1.0 - self.percentile / 100.0) / 2.0
        ends = histogram.quantile(tail).float(), histogram.quantile(1.0 - tail).float()
        low, high = (end.clamp(observed.low, observed.high) for end in ends)
        return low, high
