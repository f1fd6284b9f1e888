"""A central share of the observed values; the tails are clipped."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from quantkit.calibrators.histogram import Histogram
from quantkit.config import STRICT

__all__ = ["Percentile"]


@dataclass(frozen=True, config=STRICT)
class Percentile:
    """Cover the central `percentile` percent of the values, half of the rest cut at each end.

    On post-LayerNorm encoders this clips the massive activations: on a small real
    Indonesian encoder 99.99 left a feature SQNR of 4.0 dB where minmax keeps 17.7 dB.
    """

    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    name: Literal["percentile"] = "percentile"
    needs_histogram: ClassVar[bool] = True

    def range(self, low: float, high: float, histogram: Histogram | None) -> tuple[float, float]:
        """Interpolated quantiles of the histogram, never outside `low..high`."""
        if histogram is None:
            raise ValueError("the percentile calibrator needs a histogram")
        tail = (1.0 - self.percentile / 100.0) / 2.0
        return max(low, histogram.quantile(tail)), min(high, histogram.quantile(1.0 - tail))
