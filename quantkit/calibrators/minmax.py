"""The whole observed range: nothing is ever clipped."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.calibrators.observer import Needs, Observed
from quantkit.config import STRICT
from quantkit.numerics import Grid

__all__ = ["MinMax"]


@dataclass(frozen=True, config=STRICT)
class MinMax:
    """Cover every value that calibration saw.

    The default: BERT's massive activations (|max| / sigma of 85 to 118 on one token of each
    text) carry meaning, and cutting them off ruins the model.
    """

    name: Literal["minmax"] = "minmax"
    needs: ClassVar[Needs] = "extremes"

    def range(self, observed: Observed, grid: Grid) -> tuple[Tensor, Tensor]:
        """The extremes themselves [n]."""
        del grid
        return observed.low, observed.high
