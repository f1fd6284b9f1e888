"""Calibrators: from what was observed of a tensor to the range that its grid has to cover.

    extremes  -> MinMax
    moving    -> MovingAverage
    histogram -> Percentile, Mse, Entropy

Each has `needs`, one of the words on the left, and
`range(observed, grid) -> (low, high)`, all of shape [n]: one range per tensor, channel or group.
"""

from torch import Tensor

from quantkit.calibrators.entropy import Entropy
from quantkit.calibrators.histogram import Histogram
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.calibrators.mse import Mse
from quantkit.calibrators.observer import MOMENTUM, Observed, Observer
from quantkit.calibrators.per_token import per_token_range
from quantkit.calibrators.percentile import Percentile

__all__ = [
    "Calibrator",
    "Entropy",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Mse",
    "Observed",
    "Observer",
    "Percentile",
    "observer_for",
    "per_token_range",
]

Calibrator = MinMax | MovingAverage | Percentile | Mse | Entropy


def observer_for(calibrator: Calibrator, low: Tensor, high: Tensor) -> Observer:
    """An observer of what `calibrator` needs, over n ranges whose extremes [n] are known."""
    momentum = calibrator.momentum if isinstance(calibrator, MovingAverage) else MOMENTUM
    return Observer(len(low), calibrator.needs, bounds=(low, high), momentum=momentum)
