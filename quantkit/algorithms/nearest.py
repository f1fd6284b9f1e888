"""Rounding to nearest: every weight takes the closest point of its grid."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT
from quantkit.numerics import Grid, quantize

__all__ = ["Nearest"]


@dataclass(frozen=True, config=STRICT)
class Nearest:
    """Round half to even, as `numerics.quantize` does; needs no statistics."""

    name: Literal["nearest"] = "nearest"
    needs_hessian: ClassVar[bool] = False

    def round(self, weight: Tensor, scale: Tensor, grid: Grid, hessian: Tensor | None) -> Tensor:
        """Codes [out, in] of `weight` [out, in], in the grid's dtype; `hessian` is not read.

        `scale` is float32 [out, 1], or [out, in] for groups of columns. Weight grids are
        symmetric, so the zero point is 0. Scale 0.5: the weights 0.25 and 0.75 get 0 and 2.
        """
        return quantize(weight, scale, weight.new_zeros((), dtype=grid.dtype), grid)
