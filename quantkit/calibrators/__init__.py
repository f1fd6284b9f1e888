"""Calibrators: from streamed statistics of a tensor to the range its grid has to cover."""

from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.percentile import Percentile

__all__ = ["Calibrator", "MinMax", "Percentile"]

Calibrator = MinMax | Percentile
