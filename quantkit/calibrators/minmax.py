"""The whole observed range: nothing is ever clipped."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from quantkit.calibrators.histogram import Histogram
from quantkit.config import STRICT

__all__ = ["MinMax"]


@dataclass(frozen=True, config=STRICT)
class MinMax:
    """Cover every value that calibration saw.

    The default: BERT's massive activations (|max| / sigma of 85 to 118 on one token of each
    text) carry meaning, and cutting them off ruins the model.
    """

    name: Literal["minmax"] = "minmax"
    needs_histogram: ClassVar[bool] = False

    def range(self, low: float, high: float, histogram: Histogram | None) -> tuple[float, float]:
        """The range itself."""
        del histogram
        return low, high
