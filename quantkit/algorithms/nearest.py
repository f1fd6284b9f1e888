"""Rounding to nearest: every weight takes the closest point of its grid."""

from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT
from quantkit.numerics import Grid, quantize

__all__ = ["Nearest"]


@dataclass(frozen=True, config=STRICT)
class Nearest:
    """Round half to even, as `numerics.quantize` does; needs no statistics."""

    name: Literal["nearest"] = "nearest"

    def round(self, weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
        """Codes of `weight` [out, in] under `scale` and `zero_point` [out, 1]."""
        return quantize(weight, scale, zero_point, grid)
