"""The typical range of a batch: extremes averaged over the stream."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.calibrators.observer import MOMENTUM, Needs, Observed
from quantkit.config import STRICT
from quantkit.numerics import Grid

__all__ = ["MovingAverage"]


@dataclass(frozen=True, config=STRICT)
class MovingAverage:
    """An exponential moving average of each batch's extremes, begun with the first batch.

    m = momentum * m + (1 - momentum) * batch (Jacob et al. 2018, section 3.1). 0.9 is the
    `ema_ratio` of MMRazor's EMAMinMaxObserver. PyTorch's `averaging_constant` of 0.01, a
    momentum of 0.99, is for the thousands of batches of a training run: after the 63 batches of a
    calibration, the first would keep 54 % of the weight (0.99**62), where 0.9 leaves it 0.1 %.

    The order of the batches matters. quantkit's own come sorted by length, so that the longest
    texts weigh most. What lies outside the average range is clipped, the larger ones of BERT's
    massive activations (|max| / sigma of 85 to 118 on one token of each text) first of all. On a
    small real Indonesian encoder that did no harm: the features' SQNR was 16.9 dB where minmax
    gives 16.5, and 22.6 dB with both behind SmoothQuant with alpha 0.75.
    """

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = MOMENTUM
    name: Literal["moving-average"] = "moving-average"
    needs: ClassVar[Needs] = "moving"

    def range(self, observed: Observed, grid: Grid) -> tuple[Tensor, Tensor]:
        """The averaged ends [n], inside the observed extremes; the same on every grid.

        Raises:
            ValueError: no average was kept.
        """
        del grid
        if observed.moving_low is None or observed.moving_high is None:
            raise ValueError("this calibrator needs moving extremes, and none were kept")
        low, high = observed.low, observed.high
        return observed.moving_low.clamp(low, high), observed.moving_high.clamp(low, high)
